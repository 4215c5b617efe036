"""The machine: memory, buses, chipset, virtio devices and processors, put together before the guest runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kata_hypervisor.dragonball import acpi, board_state, boot, cpuid, layout, processor, processor_state
from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.chipset import Clock, KeyboardController, SleepControl
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.processors import Processors
from kata_hypervisor.dragonball.saved_state import Document, Fields
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.dragonball.slots import D, Slot, States
from kata_hypervisor.dragonball.virtio.device import Device, DeviceContext
from kata_hypervisor.dragonball.virtio.mmio import USED_BUFFERS, Register, Registers
from kata_hypervisor.dragonball.vm import VirtualMachine
from kata_hypervisor.errors import LaunchError, SnapshotError
from kata_hypervisor.kvm import abi
from kata_hypervisor.kvm.device import DEVICE

MOST_VCPUS = 32


@dataclass(frozen=True, slots=True)
class Board:
    """What a machine is made of.

    memory: bytes, a multiple of 2 MiB. huge: from the host's huge pages. content: descriptor of a saved
    machine's memory, which this one begins with, the caller's. private: see GuestMemory.load.
    """

    vcpus: int
    memory: int
    huge: bool = False
    device: str = DEVICE
    content: int | None = None
    private: bool = False


class Machine:
    """A machine whose devices are added, which is then loaded with a kernel or a saved state, and run.

    show: takes what the guest writes to its console; called on a vCPU's thread, must not block.
    ended: called once on whichever thread, with how the guest ended.

    Raises:
        HostUnfitError: the host cannot make it.
    """

    def __init__(self, board: Board, show: Callable[[bytes], None], ended: Callable[[str], None]) -> None:
        self._board = board
        self._ours = ExitStack()
        self._windows: list[acpi.VirtioWindow] = []
        self._slots: list[acpi.VirtioWindow] = []
        self._devices: list[Device] = []
        self._registers: list[Registers] = []
        self._clock = Clock()
        self._cpuid: list[abi.KvmCpuid2] = []
        self.bus = Bus()
        self.processors = Processors(self.bus, ended)
        with ExitStack() as undo:
            self.control = Control("devices")
            undo.callback(self.control.close)
            self.memory = _memory_of(board)
            undo.callback(self.memory.close)
            self.vm = VirtualMachine(self.memory, board.device)
            undo.callback(self.vm.close)
            self._indices = self.vm.model_specific()
            self.serial = self._add_chipset(show)
            self.states = self._add_states()
            self._ours = undo.pop_all()

    def _add_chipset(self, show: Callable[[bytes], None]) -> SerialPort:
        line = self.vm.interrupt_line(layout.COM1_IRQ)
        serial = SerialPort(show, lambda: os.eventfd_write(line, 1))
        keyboard = KeyboardController(lambda: self.processors.end("it reset"))
        sleep = SleepControl(lambda: self.processors.end("it powered off"))
        self.bus.add_ports(layout.COM1, 8, serial)
        self.bus.add_ports(layout.RTC, 2, self._clock)
        self.bus.add_ports(layout.KEYBOARD_COMMAND, 1, keyboard)
        self.bus.add_ports(layout.SLEEP_CONTROL, 2, sleep)
        return serial

    def _add_states(self) -> States:
        event = self.vm.interrupt_line(layout.SLOTS_IRQ)
        return States(lambda: os.eventfd_write(event, 1))

    def add_device(self, device: Device) -> None:
        """Give the guest a virtio device, which belongs to the machine from here on.

        Raises:
            LaunchError: there are as many devices as interrupt pins.
            HostUnfitError: the host refuses what the device needs.
        """
        window = self._reserve_window(self._windows)
        self._connect(device, window, self.vm.map_readable(window.address))

    def add_slot(self, device: D) -> Slot[D]:
        """Prepare an empty device that the guest does not find before `states` shows it. As `add_device`.

        Whether its driver has looked at it must be seen, so each look is an exit.
        """
        window = self._reserve_window(self._slots)
        slot = Slot(self.states.add(), device, self._connect(device, window, None))
        self.bus.add_ports(layout.SLOTS + slot.number, 1, self.states)
        return slot

    def _connect(self, device: Device, window: acpi.VirtioWindow, page: memoryview | None) -> Registers:
        self._devices.append(device)
        line = self.vm.interrupt_line(window.interrupt)
        registers = Registers(device, lambda: os.eventfd_write(line, 1), self.control.call, page)
        self._registers.append(registers)
        groups = {group for group in device.notify_groups if group is not None}
        notify_fds = [self.vm.event() for _ in groups]
        for queue, group in enumerate(device.notify_groups):
            if group is not None:
                self.vm.count_writes(window.address + Register.QUEUE_NOTIFY, queue, notify_fds[group])
        unread = self.vm.event()
        self.vm.count_writes(window.address + Register.INTERRUPT_ACKNOWLEDGE, USED_BUFFERS, unread)
        device.connect(DeviceContext(self.memory, notify_fds, line, registers))
        registers.show()
        self.bus.add_page(window.address, registers)
        return registers

    def _reserve_window(self, windows: list[acpi.VirtioWindow]) -> acpi.VirtioWindow:
        number = len(self._windows) + len(self._slots)
        if number == len(layout.VIRTIO_INTERRUPTS):
            raise LaunchError(f"cannot give the guest more than {number} devices")
        address = layout.VIRTIO + number * layout.VIRTIO_WINDOW
        windows.append(acpi.VirtioWindow(address, layout.VIRTIO_INTERRUPTS[number]))
        return windows[-1]

    def load(self, kernel: Path, initrd: Path | None, command_line: str) -> None:
        """Write the tables, load the kernel, and make the processors; their threads wait.

        Raises:
            LaunchError: a file is missing or damaged, or does not fit.
        """
        tables = acpi.tables(self._board.vcpus, self._windows, self._slots)
        self.memory.write(layout.ACPI_TABLES, tables)
        image = boot.load(self.memory, kernel, initrd, command_line)
        self._add_processors()
        for number, descriptor in enumerate(self.processors.descriptors):
            processor.prepare_any_processor(descriptor)
            if number == 0:
                processor.prepare_boot_processor(descriptor, self.memory, image)

    def _add_processors(self) -> None:
        supported = self.vm.supported_cpuid()
        for number in range(self._board.vcpus):
            descriptor, page = self.vm.create_vcpu(number)
            table = cpuid.normalize(supported, number, self._board.vcpus)
            fcntl.ioctl(descriptor, abi.KVM_SET_CPUID2, table)
            self._cpuid.append(table)
            self.processors.add(descriptor, page)

    def save(self, memory: int) -> Document:
        """Write the memory into a file of its size, and return the state of everything else.

        The processors are held, and stay so. Makes no system call but ioctls that read state, and writes.

        Raises:
            SnapshotError: a part of it cannot be saved.
        """
        if self.memory.private:
            raise SnapshotError("it runs on pages of the template that it was started from")
        if self.states.used:
            raise SnapshotError("a device was plugged into it, which its copies would not have")
        with ExitStack() as frozen:
            devices = []
            for registers in self._registers:
                devices.append(registers.freeze())
                frozen.callback(registers.thaw)
            self.memory.save(memory)
            processors = [
                {"cpuid": cpuid.entries_of(table), **processor_state.save(descriptor, self._indices)}
                for table, descriptor in zip(self._cpuid, self.processors.descriptors, strict=True)
            ]
            return {
                "board": board_state.save(self.vm.descriptor),
                "processors": processors,
                "devices": devices,
                "serial": self.serial.save(),
                "clock_index": self._clock.index,
            }

    def restore(self, state: Fields) -> None:
        """Take a saved state; the memory is there, and so are the same devices. The threads wait.

        Raises:
            SnapshotError: it is damaged, or this host does not take it.
        """
        self._add_processors()
        saved = state.parts("processors", self._board.vcpus)
        for table, descriptor, one in zip(self._cpuid, self.processors.descriptors, saved, strict=True):
            cpuid.compare(one.integers("cpuid", (0, cpuid.MOST_WORDS), processor_state.WORD), table)
            processor_state.restore(descriptor, one)
        board_state.restore(self.vm.descriptor, state.part("board"))
        # From here on devices raise interrupts, which those before would have overwritten.
        devices = state.parts("devices", len(self._registers))
        for registers, one in zip(self._registers, devices, strict=True):
            registers.restore(one)
        self.serial.restore(state.part("serial"))
        self._clock.index = state.integer("clock_index", 0xFF)
        self.processors.mark_clocks_stopped()

    def close(self) -> None:
        """End the guest and its threads, and release everything; blocks for milliseconds. Idempotent."""
        self.processors.end("it was stopped")
        self.processors.join()
        self.serial.flush()
        for device in self._devices:
            device.close()
        self._ours.close()


def _memory_of(board: Board) -> GuestMemory:
    if board.content is None:
        return GuestMemory.allocate(board.memory, board.huge)
    return GuestMemory.load(board.content, board.memory, private=board.private, huge=board.huge)
