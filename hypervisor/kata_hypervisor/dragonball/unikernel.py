"""The driver of a unikernel in this process: no other process, and no kernel but the unikernel.

prepare: file -> memory, KVM, devices -> a thread, which waits.
The caller seals the process: nothing is opened, mapped or started from then on.
run:     the thread puts on its own filter -> proof -> the guest's first instruction.
end:     one task waits for the guest's end, releases everything and keeps the `VmExit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor.contract import (
    CRASHED,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    VmmProcess,
    check_unikernel,
)
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.driver import SWITCH_INTERVAL
from kata_hypervisor.dragonball.own_process import NAME, OwnProcess
from kata_hypervisor.dragonball.thread_result import ThreadResult
from kata_hypervisor.errors import ConfinementError, HypervisorError, LaunchError, UnikernelError
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import VmLifecycle
from kata_hypervisor.output_tail import Tail
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters
from kata_hypervisor.solo5.hypercalls import End
from kata_hypervisor.solo5.machine import Board, Machine
from kata_hypervisor.solo5.supply import Supply, read_file, supply_of

MIB = 1 << 20


class InProcessUnikernel(VmLifecycle, UnikernelVmm):
    """One unikernel in this process.

    table: [hypervisor.dragonball] of the configuration. host: reads what the kernel says of this process's
    threads, which a sealed process cannot.

    Make it, and await `prepare`, in the main thread and before the caller seals itself.
    """

    capabilities = UnikernelCapabilities(tap_descriptors=True)

    def __init__(self, table: DragonballTable, host: Host) -> None:
        self._table = table
        self._host = host
        self._inherited = inherited_filters()
        self._seal: Callable[[], object] | None = None
        self._ours = contextlib.ExitStack()
        self._tail = Tail()
        self._worker: Control | None = None
        self._machine: Machine | None = None
        self._own: OwnProcess | None = None
        self._guest_ended: asyncio.Future[End] | None = None
        self._used = self._running = False

    def seal_vcpus(self, install: Callable[[], object]) -> None:
        """Before `run`: what the processor's thread calls first, to put its own filter on itself."""
        self._seal = install

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
                name: self._keep_device(one) for name, one in supply_of(unikernel.devices, spec).items()
            }
            line = spec.command_line.encode(errors="surrogateescape")
            output = self._keep(spec.output)
            os.set_blocking(output, False)
            board = Board(spec.memory_mib * MIB, line, output, devices)
            self._machine = Machine(unikernel, spec.file, board, self._tail.feed, self._watch_guest())
        except UnikernelError as error:
            raise UnikernelError(f"cannot run the unikernel {spec.name}: {error}") from error
        self._worker = Control("machine")
        processor = self._machine.processor
        self._own = OwnProcess(lambda _: processor.end(End("was killed")))
        self._end = asyncio.create_task(self._supervise(), name="unikernel's end")

    def _keep(self, descriptor: int) -> int:
        """A descriptor of our own for the caller's."""
        ours = os.dup(descriptor)
        self._ours.callback(os.close, ours)
        return ours

    def _keep_device(self, supply: Supply) -> Supply:
        return replace(supply, descriptor=self._keep(supply.descriptor))

    async def run(self) -> None:
        """See the contract."""
        if self._machine is None or self._worker is None or self._running or self._guest_has_ended:
            raise LaunchError("cannot run the unikernel: it is not prepared, runs already, or has ended")
        processor = self._machine.processor
        try:
            if self._seal is not None:
                seal = self._seal
                await self._worker.run(lambda: processor.confine(seal))
            await self._verify_confinement()
            if self._guest_has_ended:
                raise LaunchError("cannot run the unikernel: it was ended meanwhile")
            processor.release()
            self._running = True
        except BaseException:
            await self.stop()
            raise

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("there is no confinement to prove: the unikernel is not running")
        await self._verify_confinement()

    async def _verify_confinement(self) -> None:
        """Ask the kernel: a filter on each thread, and one more on the processor's."""
        if self._seal is None:
            return
        assert self._own is not None
        assert self._machine is not None
        threads = await self._host.confinement(self._own)
        stacked = [thread for thread in threads if thread.tid == self._machine.processor.thread_id]
        breach = find_breach(threads, True, self._inherited)
        if stacked or not self._guest_has_ended:
            breach = breach or find_breach(stacked, True, self._inherited + 1)
        if breach is not None:
            raise ConfinementError(f"the runtime's process, which is the VMM, is not confined: {breach}")

    @property
    def _guest_has_ended(self) -> bool:
        return self._guest_ended is not None and self._guest_ended.done()

    async def _stop(self) -> None:
        if self._machine is not None:
            self._machine.processor.end(End("was stopped"))
        if self._end is not None:
            await asyncio.wait({self._end})
        else:
            self._ours.close()

    async def pause(self) -> None:
        """See the contract."""
        machine, worker = self._running_machine("pause")
        await worker.run(machine.processor.hold)

    async def resume(self) -> None:
        """See the contract."""
        machine, _ = self._running_machine("resume")
        machine.processor.release()

    def _running_machine(self, purpose: str) -> tuple[Machine, Control]:
        if self._machine is None or self._worker is None or not self._running or self._guest_has_ended:
            raise HypervisorError(f"cannot {purpose} the unikernel: it is not running")
        return self._machine, self._worker

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        return (VmmProcess("vmm", self._own),) if self._own is not None else ()

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._tail.text

    def _watch_guest(self) -> Callable[[End], None]:
        """Return what the machine calls at the guest's end, on whichever thread."""
        verdict = ThreadResult[End]()
        self._guest_ended = verdict.future
        self._ours.callback(verdict.close)
        return verdict.tell

    async def _supervise(self) -> VmExit:
        """Wait for the guest's end, then release everything."""
        assert self._guest_ended is not None
        assert self._machine is not None
        assert self._worker is not None
        end = await self._guest_ended
        await self._worker.run(self._machine.close)
        self._worker.close()
        self._ours.close()
        if self._own is not None:
            self._own.end()
        if end.status is not None:
            status = ExitStatus(code=end.status)
        else:
            status = ExitStatus(signal=signal.SIGKILL if self._requested else CRASHED)
        return VmExit(f"the unikernel {end.reason}", NAME, status, self._requested, self._diagnostics())

    def _diagnostics(self) -> Mapping[str, str]:
        return {"console": self.console_tail} if self.console_tail else {}
