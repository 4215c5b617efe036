"""QEMU's command line for a unikernel, as a pure function of the configuration and of what there is for it.

What is open is named by its descriptor in QEMU: nothing of it is looked up by a name of the image's. QEMU's
own firmware is used, because unikernels rely on it to have placed the devices.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_hypervisor.contract import BlockFile, MachineSize, NetTap, UnikernelSpec
from kata_hypervisor.privileges import NULL, RANDOM, Privileges
from kata_hypervisor.qemu.command import MONITOR, board, memory_size, option, program_data, program_devices

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

STDOUT, FILE, INITRD, BLOCK, NET = 1, 4, 5, 6, 7


def command_line(table: QemuTable, spec: UnikernelSpec) -> list[str]:
    """Build the arguments of a QEMU that waits, before the guest runs, for a command on its monitor.

    Its standard output is the unikernel's: the first serial port. A guest that writes n to port 0x501 ends
    QEMU with status 2n + 1 (isa-debug-exit, where solo5's virtio and mewz look for it).
    """
    return [
        str(table.path),
        *("-name", f"sandbox-{spec.sandbox_id},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S"),
        *(("-sandbox", table.seccompsandbox) if table.confined else ()),
        *board(table, MachineSize(table.default_vcpus, spec.memory_mib)),
        *("-kernel", _path(FILE)),
        *(("-initrd", _path(INITRD)) if spec.initrd is not None else ()),
        *("-append", spec.command_line),
        *("-chardev", option("socket", id="monitor", fd=MONITOR), "-mon", "chardev=monitor,mode=control"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-device", "isa-debug-exit"),
        *(_block(spec.block) if spec.block is not None else ()),
        *(_net(spec.net) if spec.net is not None else ()),
    ]


def shown(table: QemuTable, spec: UnikernelSpec) -> Privileges:
    """What QEMU is shown of the host: nothing of the unikernel's, which it reaches by its descriptors."""
    devices = (NULL, RANDOM, *program_devices(table))
    disk = 0 if spec.block is None else os.fstat(spec.block.descriptor).st_size
    size = max(memory_size(spec.memory_mib), disk)
    return Privileges(data=program_data(table), devices=devices, proc=True, file_size=size)


def descriptors(spec: UnikernelSpec) -> dict[int, int]:
    """What QEMU inherits for the unikernel, by its numbers there."""
    given = {STDOUT: spec.output, FILE: spec.file}
    if spec.initrd is not None:
        given[INITRD] = spec.initrd
    if spec.block is not None:
        given[BLOCK] = spec.block.descriptor
    if spec.net is not None:
        given[NET] = spec.net.descriptor
    return given


def _path(number: int) -> str:
    return f"/proc/self/fd/{number}"


def _block(block: BlockFile) -> Iterator[str]:
    device = stat.S_ISBLK(os.fstat(block.descriptor).st_mode)
    # A set of one descriptor, which QEMU copies: opening it anew by its path would take a permission.
    yield from ("-add-fd", f"fd={BLOCK},set={BLOCK}")
    file = {"file.driver": "host_device" if device else "file", "file.filename": f"/dev/fdset/{BLOCK}"}
    # Whoever may read a file may lock it, and others read it as well; a writer is the only one.
    if block.read_only and not device:
        file["file.locking"] = "off"
    read_only = "on" if block.read_only else "off"
    yield from ("-blockdev", option("driver=raw", node_name="block", read_only=read_only, **file))
    yield from ("-device", "virtio-blk-pci,drive=block")


def _net(net: NetTap) -> Iterator[str]:
    yield from ("-netdev", option("tap", id="net", fd=NET))
    yield from ("-device", f"virtio-net-pci,netdev=net,mac={net.mac.hex(':')},host_mtu={net.mtu}")
