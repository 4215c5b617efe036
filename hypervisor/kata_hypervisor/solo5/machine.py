"""A unikernel's machine: memory, KVM's machine and processor, and what the calls reach."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from kata_hypervisor.errors import HostUnfitError, UnikernelError
from kata_hypervisor.kvm import abi as kvm
from kata_hypervisor.kvm.device import DEVICE, open_kvm, patient_ioctl
from kata_hypervisor.kvm.vcpus import accept_kicks
from kata_hypervisor.solo5 import abi, start
from kata_hypervisor.solo5.attachment import AttachedDevice, check_room
from kata_hypervisor.solo5.devices import Block, Console, Device, Net, Waiter
from kata_hypervisor.solo5.exits import handle
from kata_hypervisor.solo5.hypercalls import End, Guest
from kata_hypervisor.solo5.manifest import BlockProperties, attached_manifest, check_devices
from kata_hypervisor.solo5.memory import Memory
from kata_hypervisor.solo5.processor import Processor
from kata_hypervisor.solo5.unikernel_file import HVT, HVT_VERSION, Unikernel, check_target

RUNNER = "the in-process monitor"


@dataclass(frozen=True, slots=True)
class Board:
    """What a machine is made of.

    memory: bytes; rounded down to 2 MiB. console: an open descriptor that does not block, for what the guest
    prints. devices: by the names of the manifest.
    """

    memory: int
    command_line: bytes
    console: int
    devices: Mapping[str, AttachedDevice] = field(default_factory=dict)
    device: str = DEVICE


class Machine:
    """A unikernel that is loaded, and a processor that waits. Must be made on the process's main thread.

    file: the open file that `unikernel` was read from. seen: is given what the guest prints. ended: called
    once, on whichever thread, with how the guest ended.

    Raises:
        UnikernelError: it does not fit the machine, or its file is damaged.
        HostUnfitError: the host cannot make the machine.
    """

    def __init__(
        self,
        unikernel: Unikernel,
        file: int,
        board: Board,
        seen: Callable[[bytes], None],
        ended: Callable[[End], None],
    ) -> None:
        check(unikernel, board)
        self._board = board
        with ExitStack() as undo:
            self._undo = undo
            self.memory = self._make_memory(unikernel, file)
            vcpu, page = self._make_vcpu()
            self._start(vcpu, unikernel)
            wake = self._own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            guest = self._make_guest(unikernel, wake, seen)
            accept_kicks()
            self.processor = Processor(wake, partial(handle, guest), ended)
            self.processor.add(vcpu, page)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """End the guest and its thread, and let go of everything; blocks for milliseconds. Idempotent."""
        self.processor.end(End("was stopped"))
        self.processor.join()
        self._undo.close()

    def _own(self, descriptor: int) -> int:
        self._undo.callback(os.close, descriptor)
        return descriptor

    def _make_memory(self, unikernel: Unikernel, file: int) -> Memory:
        size = self._board.memory // abi.LARGE_PAGE * abi.LARGE_PAGE
        fixed = [(s.address // abi.PAGE * abi.PAGE, s.end) for s in unikernel.segments if not s.writable]
        memory = Memory(size, fixed)
        self._undo.callback(memory.close)
        start.load_segments(memory, unikernel, file)
        start.write_tables(memory)
        return memory

    def _make_vcpu(self) -> tuple[int, mmap.mmap]:
        """Make KVM's machine with its memory and one processor; returns that and its page."""
        kvm_device = self._own(open_kvm(self._board.device))
        try:
            vm = self._own(patient_ioctl(kvm_device, kvm.KVM_CREATE_VM))
            self._give_memory(
                vm, bool(fcntl.ioctl(kvm_device, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_READONLY_MEM))
            )
            vcpu = self._own(fcntl.ioctl(vm, kvm.KVM_CREATE_VCPU, 0))
            table = kvm.KvmCpuid2(nent=kvm.MAX_CPUID_ENTRIES)
            fcntl.ioctl(kvm_device, kvm.KVM_GET_SUPPORTED_CPUID, table)
            fcntl.ioctl(vcpu, kvm.KVM_SET_CPUID2, table)
            page = mmap.mmap(vcpu, fcntl.ioctl(kvm_device, kvm.KVM_GET_VCPU_MMAP_SIZE))
        except OSError as error:
            raise HostUnfitError(
                f"cannot make a virtual machine with {self._board.device}: {error.strerror}"
            ) from error
        self._undo.callback(page.close)
        return vcpu, page

    def _give_memory(self, vm: int, can_fix: bool) -> None:
        for slot, area in enumerate(self.memory.areas):
            region = kvm.KvmUserspaceMemoryRegion(
                slot=slot,
                flags=kvm.KVM_MEM_READONLY if area.fixed and can_fix else 0,
                guest_phys_addr=area.start,
                memory_size=area.end - area.start,
                userspace_addr=self.memory.address + area.start,
            )
            fcntl.ioctl(vm, kvm.KVM_SET_USER_MEMORY_REGION, region)

    def _start(self, vcpu: int, unikernel: Unikernel) -> None:
        properties = {name: device.properties for name, device in self._board.devices.items()}
        manifest = attached_manifest(unikernel.devices, properties)
        frequency = start.cycles_per_second(vcpu)
        start.write_boot_info(self.memory, unikernel.end, frequency, self._board.command_line, manifest)
        start.set_registers(vcpu, unikernel.entry, self.memory.size)

    def _make_guest(self, unikernel: Unikernel, wake: int, seen: Callable[[bytes], None]) -> Guest:
        waiter = Waiter(wake, lambda: self.processor.attend())
        self._undo.callback(waiter.close)
        devices: dict[int, Device] = {}
        for declared in unikernel.devices:
            attached = self._board.devices[declared.name]
            if isinstance(attached.properties, BlockProperties):
                capacity = attached.properties.capacity
                devices[declared.handle] = Block(attached.descriptor, capacity, read_only=attached.read_only)
            else:
                devices[declared.handle] = Net(attached.descriptor)
                waiter.add_input(attached.descriptor, declared.handle)
        return Guest(self.memory, Console(self._board.console, waiter, seen), waiter, devices)


def check(unikernel: Unikernel, board: Board) -> None:
    """See that the unikernel is for this monitor and this board. Raises UnikernelError."""
    check_target(unikernel, HVT, HVT_VERSION, RUNNER)
    check_devices(unikernel.devices, {name: device.kind for name, device in board.devices.items()})
    if board.memory > abi.MOST_MEMORY:
        raise UnikernelError(
            f"it would get {board.memory >> 20} MiB of memory, and target hvt supports "
            f"{abi.MOST_MEMORY >> 20} MiB: lower default_memory"
        )
    check_room(unikernel, board.memory)
