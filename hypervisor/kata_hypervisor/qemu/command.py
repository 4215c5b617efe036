"""QEMU's command line, as a pure function of the configuration, the machine and its descriptors.

Sources: qemu-system-x86_64(1), QEMU 7.2. Every channel to the process is a descriptor that it inherits: it
leaves no socket on disk. It stays in the foreground, where `-sandbox` may deny `fork`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kata_agent import reserved_ports
from kata_hypervisor.contract import MachineSize, SharedDirectory, Tap, VmSpec
from kata_hypervisor.kernel_line import kernel_line
from kata_hypervisor.privileges import KVM, NULL, VHOST_NET, Privileges, prefix_data
from kata_hypervisor.qemu.info import BLOCK_THREADS, LATER_MEMORY

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

STDERR, MONITOR, CONSOLE, AGENT, FILESYSTEM, TAPS = 2, 3, 4, 5, 6, 7
"""Descriptors in QEMU: AGENT is the vhost-vsock device, or a socket to the agent's serial port. From TAPS on
are the queues of the taps, in their order.
"""

FIRMWARE = tuple(
    Path("/usr/share", name) for name in ("qemu", "seabios", "qboot", "qemu-efi", "ipxe", "ovmf", "OVMF")
)
"""Directories in which distributions keep QEMU's firmware."""

SERIAL_PORT_NAME = "org.kata.agent.0"
"""The virtio-serial port, below /dev/virtio-ports in the guest, on which the agent serves all its ports."""

# Board devices that no guest of ours has a driver's need for: less to emulate, less to attack.
MACHINE_DEFAULTS = "usb=off,vmport=off,smbus=off,sata=off"

# The guest's memory is in no core file: QEMU marks it MADV_DONTDUMP.
NO_DUMP = "dump-guest-core=off"

MODELS = {"kvm": "host", "tcg": "max"}
"""The guest's processor, by accelerator."""

HIDDEN = {"kvm": "-vmx,-svm", "tcg": "-svm,min-xlevel=0x80000008"}
"""What takes the processor's virtualization from the guest, by accelerator. QEMU has the leaves of CPUID end
where its features do, and the last feature that TCG has there is SVM; leaf 0x80000008 says how wide addresses
are. Without it Linux takes them for 48 bits wide on a processor with five levels of page tables, and the
names of files in its own memory for bad addresses: readlink(2) of /proc/self/exe gives nonsense, and programs
abort.
"""

TRANSLATED_MIB = 128
"""Of translated code, with TCG. QEMU's own bound is a GiB, which new processes fill."""

CLOCK = {"kvm": "reliable", "tcg": "unstable"}
"""What the guest's kernel takes its processor's time stamp counter for, by accelerator. Under KVM it need not
watch the counter. An emulated one runs at the host's rate, which the guest measures against emulated timers:
on a busy host it is wrong several times over. The board's HPET says its own rate.
"""


class Devices(NamedTuple):
    """What the machine is connected to.

    vsock_cid: the guest's context id when AGENT is the vhost-vsock device; None: a serial port's socket.
    image_partitioned: see `kernel_line.is_partitioned`. vhost_net: whether the host has VHOST_NET.
    """

    vsock_cid: int | None
    image_partitioned: bool = False
    vhost_net: bool = False


def command_line(table: QemuTable, spec: VmSpec, devices: Devices) -> list[str]:
    """Build the arguments of a QEMU that waits, before the guest runs, for a command on its monitor.

    Raises:
        LaunchError: the kernel's command line is too long.
    """
    return [
        str(table.path),
        *("-name", f"sandbox-{spec.sandbox_id},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S"),
        *(("-sandbox", table.seccompsandbox) if table.confined else ()),
        *board(table, MachineSize(spec.vcpus, spec.memory_mib), spec.most),
        *_boot(table, spec, devices),
        *_channels(),
        *_agent(devices),
        *_entropy(table.entropy_source),
        *_block_threads(table),
        *(_image(table, spec.image) if spec.image else ()),
        *(_filesystem(spec.shared, table.virtio_fs_queue_size) if spec.shared else ()),
        *_taps(spec.taps, vhost=_has_vhost_net(table, devices)),
        *_later_memory(table, spec.later_memory_mib),
        *(("-device", "virtio-balloon-pci,free-page-reporting=on") * table.reclaim_guest_freed_memory),
    ]


def shown(table: QemuTable, spec: VmSpec, devices: Devices) -> Privileges:
    """What QEMU is shown of the host for this machine: what its command line names."""
    files = [spec.kernel, *filter(None, (table.firmware, spec.initrd, spec.image))]
    nodes = [
        NULL,
        *program_devices(table),
        *([VHOST_NET] if spec.taps and _has_vhost_net(table, devices) else []),
    ]
    (nodes if table.entropy_source.is_char_device() else files).append(table.entropy_source)
    return Privileges(
        tuple(files),
        program_data(table),
        tuple(dict.fromkeys(nodes)),
        file_size=max(memory_size(spec.memory_mib), memory_size(spec.later_memory_mib)),
    )


def _has_vhost_net(table: QemuTable, devices: Devices) -> bool:
    """Whether the host's kernel moves the packets of the machine's network."""
    return devices.vhost_net and not table.disable_vhost_net


def memory_size(memory_mib: int) -> int:
    """Bytes of a guest's memory, which is a file of QEMU's; it makes no other."""
    return memory_mib << 20


def program_devices(table: QemuTable) -> tuple[Path, ...]:
    """The devices that QEMU opens for the processors."""
    return (KVM,) if table.accelerator == "kvm" else ()


def program_data(table: QemuTable) -> tuple[Path, ...]:
    """Where QEMU looks for its firmware and its modules."""
    return (*FIRMWARE, *prefix_data(table.path, "share/qemu", "share/qemu-firmware", "lib", "lib64"))


def option(head: str, **properties: object) -> str:
    """Write `head,key=value,...`; a comma in a value is doubled, an underscore in a key becomes a hyphen."""
    escaped = {key.replace("_", "-"): str(value).replace(",", ",,") for key, value in properties.items()}
    return ",".join([head, *(f"{key}={value}" for key, value in escaped.items())])


def block_threads(table: QemuTable) -> tuple[str, ...]:
    """Name the threads that serve block devices: the image's, then those of later disks; or none."""
    return BLOCK_THREADS[: 1 + table.indep_iothreads] if table.enable_iothreads else ()


def queues(table: QemuTable) -> dict[str, int]:
    """The queues of a block device."""
    return {"num-queues": table.num_queues, "queue-size": table.queue_size}


def board(table: QemuTable, size: MachineSize, most: MachineSize | None = None) -> Iterator[str]:
    """Arguments for the machine itself: its memory, its board, its processors. most: see VmSpec."""
    memory = f"{size.memory_mib}M"
    prealloc = {"prealloc": "on"} if table.enable_mem_prealloc else {}
    yield from ("-object", _memory_backend(table, "memory", memory, **prealloc))
    machine = f"{table.machine_type},memory-backend=memory,{MACHINE_DEFAULTS},{NO_DUMP}"
    yield from ("-machine", ",".join(filter(None, [machine, table.machine_accelerators])))
    emulated = f"tcg,thread=multi,tb-size={TRANSLATED_MIB}"
    yield from ("-accel", "kvm" if table.accelerator == "kvm" else emulated)
    hidden = HIDDEN[table.accelerator] if table.disable_nested_virtualization else ""
    yield from ("-cpu", ",".join(filter(None, [MODELS[table.accelerator], hidden, table.cpu_features])))
    # No maxcpus unless CPUs are plugged in later: a guest pays for each that it might get.
    if most is None:
        yield from ("-smp", f"cpus={size.vcpus}", "-m", memory)
        return
    # Each in a socket of its own, so that its number says where it is.
    later = {"maxcpus": most.vcpus, "sockets": most.vcpus, "cores": 1, "threads": 1}
    yield from ("-smp", option(f"cpus={size.vcpus}", **later))
    yield from ("-m", memory if most.memory_mib == size.memory_mib else f"{memory},maxmem={most.memory_mib}M")


def _memory_backend(table: QemuTable, name: str, size: str, **properties: str) -> str:
    kind = {"hugetlb": "on", "hugetlbsize": "2M"} if table.enable_hugepages else {}
    return option("memory-backend-memfd", id=name, size=size, share="on", seal="on", **kind, **properties)


def _later_memory(table: QemuTable, memory_mib: int) -> Iterator[str]:
    """A virtio-mem device, whose memory is a file of its full size: virtiofsd is shown it once, at the start.

    What is not plugged in takes no memory of the host as long as the guest keeps to what it was given.
    """
    if memory_mib:
        backend = _memory_backend(table, "later", f"{memory_mib}M", reserve="off")
        yield from ("-object", backend)
        # With huge pages, and where memory is to be there before it is used, QEMU takes it when it is asked
        # for: a guest is refused memory that the host has not, and does not die of it.
        there = table.enable_hugepages or table.enable_mem_prealloc
        prealloc = {"prealloc": "on"} if there else {}
        yield from ("-device", option("virtio-mem-pci", id=LATER_MEMORY, memdev="later", **prealloc))


def _boot(table: QemuTable, spec: VmSpec, devices: Devices) -> Iterator[str]:
    # qboot is QEMU's own minimal firmware: a tenth of a second less than SeaBIOS.
    yield from ("-bios", str(table.firmware or "qboot.rom"), "-kernel", str(spec.kernel))
    if spec.initrd is not None:
        yield from ("-initrd", str(spec.initrd))
    agent = () if devices.vsock_cid is None else (reserved_ports.PARAMETER,)
    line = kernel_line(
        (f"tsc={CLOCK[table.accelerator]}", "no_timer_check", *agent),
        spec,
        quiet=not table.enable_debug,
        partitioned=devices.image_partitioned,
    )
    yield from ("-append", line)


def _channels() -> Iterator[str]:
    yield from ("-chardev", option("socket", id="monitor", fd=MONITOR))
    yield from ("-mon", "chardev=monitor,mode=control")
    # A 16550: the kernel writes to it long before it knows virtio, so an early panic is seen.
    yield from ("-chardev", option("socket", id="console", fd=CONSOLE), "-serial", "chardev:console")


def _agent(devices: Devices) -> Iterator[str]:
    if devices.vsock_cid is not None:
        yield from ("-device", option("vhost-vsock-pci", vhostfd=AGENT, guest_cid=devices.vsock_cid))
        return
    yield from ("-device", "virtio-serial-pci,id=serial,max_ports=2")
    yield from ("-chardev", option("socket", id="agent", fd=AGENT))
    yield from ("-device", option("virtserialport", bus="serial.0", chardev="agent", name=SERIAL_PORT_NAME))


def _entropy(source: Path) -> Iterator[str]:
    yield from ("-object", option("rng-random", id="entropy", filename=source))
    yield from ("-device", option("virtio-rng-pci", rng="entropy"))


def _block_threads(table: QemuTable) -> Iterator[str]:
    for name in block_threads(table):
        yield from ("-object", option("iothread", id=name))


def _image(table: QemuTable, image: Path) -> Iterator[str]:
    # QEMU's locks are advisory, and whoever may read a file may take them: every pod, every user of the host.
    file = {"file.driver": "file", "file.filename": image, "file.locking": "off"}
    yield from ("-blockdev", option("driver=raw", node_name="image", read_only="on", **file))
    threads = block_threads(table)
    served = {"iothread": threads[0]} if threads else {}
    yield from ("-device", option("virtio-blk-pci", drive="image", **queues(table), **served))


def _filesystem(shared: SharedDirectory, queue_size: int) -> Iterator[str]:
    yield from ("-chardev", option("socket", id="filesystem", fd=FILESYSTEM))
    device = option("vhost-user-fs-pci", chardev="filesystem", tag=shared.tag, queue_size=queue_size)
    yield from ("-device", device)


def _taps(taps: tuple[Tap, ...], *, vhost: bool) -> Iterator[str]:
    # QEMU opens vhost-net itself, once for each pair of queues; forced, because it would go on without.
    carrier = {"vhost": "on", "vhostforce": "on"} if vhost else {}
    first = TAPS
    for tap in taps:
        count = len(tap.fds)
        fds = ":".join(str(first + number) for number in range(count))
        first += count
        yield from ("-netdev", option("tap", id=tap.id, fds=fds, **carrier))
        # An option ROM is for booting from the network. Vectors: two for each pair, and two more.
        queues = {"mq": "on", "vectors": 2 * count + 2} if count > 1 else {}
        yield from ("-device", option("virtio-net-pci", netdev=tap.id, mac=tap.mac, romfile="", **queues))
