"""The guest image: kernel, initramfs and root filesystem, made from the distribution's own packages.

A build is a function of its inputs: the packages, the guest agent and this package's source. The
same inputs give the same bytes, whoever builds and wherever.

    distribution  which packages a guest is made of, by distribution
    apt           what these are today, and the files of them
    tree          files in memory, from packages to a directory or an archive
    elf           the two things we read from ELF files: needed libraries, and a module's description
    kernel        the kernel's modules, and the order in which they load
    initramfs     from power-on to the root filesystem
    rootfs        crun, the guest agent with what it runs on, and nothing that they do not use
    agent         this project's guest agent, and its Python
    agent_program a program of one's own in its place
    manifest      what went in and what came out
    sbom          the same for those who look for a package: a bill of materials
    cyclonedx     the form of a bill of materials
    builder       all of it: cached, locked, and replaced in one step
"""
