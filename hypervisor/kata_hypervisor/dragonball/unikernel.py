"""The driver of a unikernel in this process: no other process, and no kernel but the unikernel.

prepare: file -> memory, KVM, devices -> a thread, which waits.
run:     see in_process.
end:     one task waits for the guest's end, releases everything and keeps the `VmExit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_hypervisor.contract import (
    CRASHED,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    VmmProcess,
    check_unikernel,
)
from kata_hypervisor.dragonball.in_process import SWITCH_INTERVAL, InProcessVmm
from kata_hypervisor.dragonball.layout import MIB
from kata_hypervisor.dragonball.own_process import NAME, OwnProcess
from kata_hypervisor.errors import LaunchError, UnikernelError
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.output_tail import Tail
from kata_hypervisor.solo5.attachment import AttachedDevice, attach_devices, read_file
from kata_hypervisor.solo5.hypercalls import End
from kata_hypervisor.solo5.machine import Board, Machine
from kata_hypervisor.solo5.processor import Processor

if TYPE_CHECKING:
    from kata_configuration.models.dragonball import Dragonball as DragonballTable


class InProcessUnikernel(InProcessVmm[End], UnikernelVmm):
    """One unikernel in this process. table: [hypervisor.dragonball] of the configuration, without effect."""

    capabilities = UnikernelCapabilities(tap_descriptors=True, tap_header=False)
    _noun = "the unikernel"

    def __init__(self, table: DragonballTable, host: Host) -> None:
        super().__init__(host)
        self._ours = contextlib.ExitStack()
        self._tail = Tail()
        self._machine: Machine | None = None
        self._used = False

    @property
    def _vcpus(self) -> Processor | None:
        return self._machine.processor if self._machine is not None else None

    def _describe(self, outcome: End) -> str:
        return f"it {outcome.reason}"

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        return frozenset({"vcpu", "unikernel"})

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        if self._used or self._requested:
            raise LaunchError(f"cannot start the unikernel of {spec.sandbox_id}: its monitor was used before")
        self._used = True
        check_unikernel(NAME, self.capabilities, spec)
        try:
            self._make(spec)
        except BaseException:
            await self.stop()
            raise

    def _make(self, spec: UnikernelSpec) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL)
        unikernel = read_file(spec)
        try:
            devices = {
                name: self._keep_device(one) for name, one in attach_devices(unikernel.devices, spec).items()
            }
            line = spec.command_line.encode(errors="surrogateescape")
            output = self._keep(spec.output)
            os.set_blocking(output, False)
            board = Board(spec.memory_mib * MIB, line, output, devices)
            guest_end = self._guest_end()
            self._ours.callback(guest_end.close)
            self._machine = Machine(unikernel, spec.file, board, self._tail.feed, guest_end.set)
        except UnikernelError as error:
            raise UnikernelError(f"cannot run the unikernel {spec.name}: {error}") from error
        self._make_worker()
        processor = self._machine.processor
        self._own = OwnProcess(lambda _: processor.end(End("was killed")))
        self._end = asyncio.create_task(self._supervise(self._machine), name="unikernel's end")

    def _keep(self, descriptor: int) -> int:
        """A descriptor of our own for the caller's."""
        ours = os.dup(descriptor)
        self._ours.callback(os.close, ours)
        return ours

    def _keep_device(self, device: AttachedDevice) -> AttachedDevice:
        return replace(device, descriptor=self._keep(device.descriptor))

    async def _stop(self) -> None:
        if self._machine is not None:
            self._machine.processor.end(End("was stopped"))
        if self._end is not None:
            await asyncio.wait({self._end})
        else:
            self._ours.close()

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        return (VmmProcess("vmm", self._own),) if self._own is not None else ()

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._tail.text

    async def _supervise(self, machine: Machine) -> VmExit:
        """Wait for the guest's end, then release everything."""
        assert self._guest_ended is not None
        end = await self._guest_ended
        if await self._release_machine(machine.close):
            self._ours.close()
        if end.status is not None:
            status = ExitStatus(code=end.status)
        else:
            status = ExitStatus(signal=signal.SIGKILL if self._requested else CRASHED)
        if self._own is not None:
            self._own.end(status)
        return VmExit(f"the unikernel {end.reason}", NAME, status, self._requested, self._diagnostics())

    def _diagnostics(self) -> Mapping[str, str]:
        return {"console": self.console_tail} if self.console_tail else {}
