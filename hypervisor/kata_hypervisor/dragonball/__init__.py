"""The in-process virtual machine monitor, on KVM.

driver      the contract's driver: prepare, run, stop
machine     everything put together; vm: KVM's descriptors; processors: threads; exits: what these handle
memory      the guest's memory; layout: what is where in it
boot        kernel (bzImage, ELF), initrd, boot_params; acpi, aml: the tables; processor, cpuid: first state
bus         ports and device pages; serial, chipset: the devices that every PC has
virtio      virtio-mmio, virtqueues, and the devices
"""
