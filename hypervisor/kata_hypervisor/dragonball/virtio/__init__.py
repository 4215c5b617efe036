"""Virtio 1.2 over MMIO: transport, virtqueues, devices in this process, in the kernel and in virtiofsd."""
