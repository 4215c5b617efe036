"""A unikernel in QEMU: one process, whose standard output is the unikernel's.

prepare: file -> host fit? -> qemu, waiting -> monitor -> proof of confinement.
run:     the virtual CPUs run.
end:     the process's end, with its own status.

All four groups of system calls are denied, whatever `seccompsandbox` says: a unikernel needs nothing that an
operator would loosen it for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import anyio

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_configuration.sandbox_option import DENY_ALL, open_groups
from kata_hypervisor.bootable import Protocol, check_bootable, check_room
from kata_hypervisor.children import MOMENT, Children
from kata_hypervisor.contract import (
    CRASHED,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    VmmProcess,
    check_unikernel,
)
from kata_hypervisor.errors import LaunchError, MachineFailedError, UnikernelError
from kata_hypervisor.host import Child, ExitStatus, Host
from kata_hypervisor.qemu import unikernel_command as command
from kata_hypervisor.qemu.command import COMMAND_LINE_LIMIT, MONITOR
from kata_hypervisor.qemu.diagnosis import Ending
from kata_hypervisor.qemu.preflight import check_program
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.qemu.qmp_control import QmpControlled
from kata_hypervisor.seccomp.confinement import inherited_filters

__all__ = ["QemuUnikernel"]

QEMU = "qemu"
STARTS = (Protocol.LINUX, Protocol.MULTIBOOT, Protocol.PVH)


class QemuUnikernel(QmpControlled, UnikernelVmm):
    """One unikernel in QEMU.

    table: [hypervisor.qemu] of the configuration. host: starts the process. start_budget, stop_budget:
    seconds that QEMU gets until its virtual CPUs run, and to end by itself.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    capabilities = UnikernelCapabilities(initrd=True, tap_descriptors=True)

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float = 30.0, stop_budget: float = 1.0
    ) -> None:
        self._table = table
        self._host = host
        self._start_budget = start_budget
        self._stop_budget = stop_budget
        self._inherited = inherited_filters()
        log = logging.getLogger(f"{__name__}.{QEMU}") if table.enable_debug else None
        self._children = Children(host, log)
        self._spawning: asyncio.Task[QmpClient] | None = None
        self._warnings: list[str] = []
        self._prepared = False
        self._fault: str | None = None

    # -- start ---------------------------------------------------------------------------------------------

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        if self._spawning is not None or self._requested:
            raise LaunchError(f"cannot start the unikernel of {spec.sandbox_id}: its monitor was used before")
        check_unikernel(QEMU, self.capabilities, spec)
        self._check_file(spec)
        self._confine(spec)
        # A task of its own: a child that is started while its caller is cancelled must be known, to be ended.
        self._spawning = asyncio.create_task(self._spawn(spec), name="unikernel's process")
        try:
            await asyncio.wait({self._spawning})
            await self._connect(self._spawning.result())
        except BaseException:
            await self.stop()
            raise

    def _check_file(self, spec: UnikernelSpec) -> None:
        check_room(spec)
        protocol = check_bootable(spec.file, spec.name, QEMU, STARTS)
        size = len(spec.command_line.encode())
        if protocol is Protocol.LINUX and size > COMMAND_LINE_LIMIT:
            raise UnikernelError(
                f"cannot run the unikernel {spec.name}: its command line has {size} bytes, and Linux reads "
                f"{COMMAND_LINE_LIMIT}: shorten its arguments and environment"
            )

    def _confine(self, spec: UnikernelSpec) -> None:
        """Decide what QEMU is confined to, and say where that is not what the configuration seems to say."""
        asked, loosened = self._table.seccompsandbox, not self._table.confined
        free = self._table.honor_unconfined and spec.unconfined
        self._table = self._table.model_copy(update={"seccompsandbox": "off" if free else DENY_ALL})
        if free:
            self._warnings.append(
                "qemu runs unconfined: honor_unconfined = true in [hypervisor.qemu] "
                "puts no filter on its system calls"
            )
        elif loosened or open_groups(asked):
            self._warnings.append(
                f'seccompsandbox = "{asked}" in [hypervisor.qemu] is not for unikernels: '
                "their qemu is denied all four groups of system calls"
            )

    async def _spawn(self, spec: UnikernelSpec) -> QmpClient:
        """Start QEMU and the task that watches it; return its monitor, not connected yet."""
        self._warnings += check_program(self._table, spec.memory_mib)
        ours, theirs = socket.socketpair()
        with theirs:
            self._children.ours.callback(ours.close)
            self._monitor = QmpClient(ours)
            self._children.ours.push_async_callback(self._monitor.aclose)
            given = command.descriptors(spec) | {MONITOR: theirs.fileno()}
            await self._children.spawn(QEMU, command.command_line(self._table, spec), given)
        self._end = asyncio.create_task(self._supervise(), name="unikernel's end")
        return self._monitor

    async def _connect(self, monitor: QmpClient) -> None:
        """Reach QEMU, whose virtual CPUs wait, and prove its confinement."""
        if self._requested:
            raise LaunchError("the unikernel was stopped while it started")
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("waiting for qemu's monitor", deadline, monitor.connect())
        watch = asyncio.create_task(self._watch(monitor), name="unikernel's faults")
        self._children.ours.callback(watch.cancel)
        await self._attempt("reading qemu's confinement", deadline, self._verify_confinement())
        self._prepared = True

    async def run(self) -> None:
        """See the contract; one that has ended by then has told its end."""
        if self._monitor is None or not self._prepared or self._running or self._requested:
            raise LaunchError("cannot run the unikernel: it is not prepared, or runs already")
        self._running = True  # it may end by itself before QEMU has answered
        try:
            deadline = anyio.current_time() + self._start_budget
            await self._attempt("starting the virtual CPUs", deadline, self._monitor.execute("cont"))
        except LaunchError:
            await self.stop()
            end = await self.wait()
            if end.requested or end.status.code is None:
                raise
        except BaseException:
            await self.stop()
            raise

    def _failure(self, message: str) -> MachineFailedError:
        return MachineFailedError(f"qemu failed to start: {message}", self._children.outputs)

    # -- end -----------------------------------------------------------------------------------------------

    async def _supervise(self) -> VmExit:
        requested = False

        async def settle() -> None:
            nonlocal requested
            requested = self._requested
            with anyio.move_on_after(MOMENT):
                if self._monitor is not None:
                    await self._monitor.wait_ended()

        try:
            ended = await self._children.watch(settle)
            return self._conclude(ended[QEMU], requested)
        finally:
            await self._children.ours.aclose()

    async def _watch(self, monitor: QmpClient) -> None:
        """End a QEMU that has stopped its machine for good, and would wait for somebody to look at it."""
        with contextlib.suppress(QmpError):
            self._fault = await monitor.wait_fault()
            await self._children.kill()

    def _conclude(self, status: ExitStatus, requested: bool) -> VmExit:
        ending = Ending(
            process=QEMU,
            status=status,
            stderr=self._children.tail(f"{QEMU} stderr"),
            console=self._children.tail("console"),
            shutdown=self._monitor.shutdown_reason if self._monitor else None,
            running=self._running,
        )
        reason = ending.describe(self._table)
        if self._fault is not None:
            reason, status = f"the unikernel crashed: {self._fault} of qemu's", ExitStatus(signal=CRASHED)
        return VmExit(reason, QEMU, status, requested, self._children.outputs)

    async def _stop(self) -> None:
        if self._spawning is not None:
            await asyncio.wait({self._spawning})
        if self._end is None or self._monitor is None:  # QEMU was never started
            await self._children.kill()
            await self._children.wait()
            await self._children.ours.aclose()
            return
        if not self._end.done():
            with anyio.move_on_after(self._stop_budget), contextlib.suppress(QmpError):
                await self._monitor.execute("quit")
                await asyncio.wait({self._end})
            await self._children.kill()
        await asyncio.wait({self._end})

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract: what every shim may do is enough."""
        return frozenset()

    @property
    def _qemu(self) -> Child:
        return self._children[QEMU]

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        return (VmmProcess("vmm", self._children[QEMU]),) if QEMU in self._children else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return tuple(self._warnings)

    @property
    def console_tail(self) -> str:
        """See the contract: what the unikernel prints goes past us."""
        return ""
