"""The machine: memory, buses, chipset, virtio devices and processors, put together before the guest runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kata_hypervisor.dragonball import acpi, boot, cpuid, layout, processor
from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.chipset import Clock, KeyboardController, SleepControl
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.memory import GuestMemory
from kata_hypervisor.dragonball.processors import Processors
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.dragonball.virtio.device import Device, Wires
from kata_hypervisor.dragonball.virtio.mmio import USED_BUFFERS, Register, Registers
from kata_hypervisor.dragonball.vm import DEVICE, VirtualMachine
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.kvm import abi

MOST_VCPUS = 32


@dataclass(frozen=True, slots=True)
class Board:
    """What a machine is made of. memory: bytes, a multiple of 2 MiB. huge: from the host's huge pages."""

    vcpus: int
    memory: int
    huge: bool = False
    device: str = DEVICE


class Machine:
    """A machine whose devices are added, which is then loaded with a kernel, and run.

    show: takes what the guest writes to its console; called on a vCPU's thread, must not block.
    ended: called once on whichever thread, with how the guest ended.

    Raises:
        HostUnfitError: the host cannot make it.
    """

    def __init__(self, board: Board, show: Callable[[bytes], None], ended: Callable[[str], None]) -> None:
        self._board = board
        self._ours = ExitStack()
        self._windows: list[acpi.VirtioWindow] = []
        self._devices: list[Device] = []
        self.bus = Bus()
        self.processors = Processors(self.bus, ended)
        with ExitStack() as undo:
            self._control = Control("devices")
            undo.callback(self._control.close)
            self.memory = GuestMemory.allocate(board.memory, board.huge)
            undo.callback(self.memory.close)
            self.vm = VirtualMachine(self.memory, board.device)
            undo.callback(self.vm.close)
            self.serial = self._add_chipset(show)
            self._ours = undo.pop_all()

    def _add_chipset(self, show: Callable[[bytes], None]) -> SerialPort:
        line = self.vm.interrupt_line(layout.COM1_IRQ)
        serial = SerialPort(show, lambda: os.eventfd_write(line, 1))
        keyboard = KeyboardController(lambda: self.processors.end("it reset"))
        sleep = SleepControl(lambda: self.processors.end("it powered off"))
        self.bus.add_ports(layout.COM1, 8, serial)
        self.bus.add_ports(layout.RTC, 2, Clock())
        self.bus.add_ports(layout.KEYBOARD_COMMAND, 1, keyboard)
        self.bus.add_ports(layout.SLEEP_CONTROL, 2, sleep)
        return serial

    def add_device(self, device: Device) -> None:
        """Give the guest a virtio device, which belongs to the machine from here on.

        Raises:
            LaunchError: there are as many devices as interrupt pins.
            HostUnfitError: the host refuses what the device needs.
        """
        self._devices.append(device)
        window = self._reserve_window()
        line = self.vm.interrupt_line(window.interrupt)
        page = self.vm.notice(window.address)
        registers = Registers(device, lambda: os.eventfd_write(line, 1), self._control.call, page)
        groups = {group for group in device.kick_groups if group is not None}
        kicks = [self.vm.event() for _ in groups]
        for queue, group in enumerate(device.kick_groups):
            if group is not None:
                self.vm.notify(window.address + Register.QUEUE_NOTIFY, queue, kicks[group])
        unheard = self.vm.event()
        self.vm.notify(window.address + Register.INTERRUPT_ACKNOWLEDGE, USED_BUFFERS, unheard)
        device.connect(Wires(self.memory, kicks, line, registers))
        registers.show()
        self.bus.add_page(window.address, registers)

    def _reserve_window(self) -> acpi.VirtioWindow:
        number = len(self._windows)
        if number == len(layout.VIRTIO_INTERRUPTS):
            raise LaunchError(f"cannot give the guest more than {number} devices")
        address = layout.VIRTIO + number * layout.VIRTIO_WINDOW
        window = acpi.VirtioWindow(address, layout.VIRTIO_INTERRUPTS[number])
        self._windows.append(window)
        return window

    def load(self, kernel: Path, initrd: Path | None, command_line: str) -> None:
        """Write the tables, load the kernel, and make the processors; their threads wait.

        Raises:
            LaunchError: a file is missing or damaged, or does not fit.
        """
        self.memory.write(layout.ACPI_TABLES, acpi.tables(self._board.vcpus, self._windows))
        image = boot.load(self.memory, kernel, initrd, command_line)
        supported = self.vm.supported_cpuid()
        for number in range(self._board.vcpus):
            descriptor, page = self.vm.create_vcpu(number)
            table = cpuid.normalize(supported, number, self._board.vcpus)
            fcntl.ioctl(descriptor, abi.KVM_SET_CPUID2, table)
            processor.prepare_any_processor(descriptor)
            if number == 0:
                processor.prepare_boot_processor(descriptor, self.memory, image)
            self.processors.add(descriptor, page)

    def close(self) -> None:
        """End the guest and its threads, and release everything; blocks for milliseconds. Idempotent."""
        self.processors.end("it was stopped")
        self.processors.join()
        self.serial.flush()
        for device in self._devices:
            device.close()
        self._ours.close()
