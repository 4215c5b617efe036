"""A QEMU process, whatever runs in it: started with its monitor, asked through it, verified, and its end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

import anyio

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.children import MOMENT, Children
from kata_hypervisor.contract import VmExit
from kata_hypervisor.errors import ConfinementError, HypervisorError
from kata_hypervisor.exit_reason import first_failure
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import VIRTIOFSD, ProcessLifecycle
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu.command import MONITOR
from kata_hypervisor.qemu.diagnosis import Ending
from kata_hypervisor.qemu.info import QEMU
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters

CONSOLE = "console"

COMMAND_BUDGET = 10.0
"""Seconds that QEMU gets to answer a command while the machine runs."""

DYING = 10.0
"""Seconds that the kernel may take to tear down a QEMU whose descriptors it has closed."""


class QmpControlled(ProcessLifecycle):
    """A machine in QEMU.

    table: [hypervisor.qemu] of the configuration. host: starts the processes. start_budget, stop_budget:
    seconds that QEMU gets until its virtual CPUs run, and to exit by itself.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    info = QEMU
    _hang_ups = (QmpError, ProcessLookupError)

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float = 30.0, stop_budget: float = 1.0
    ) -> None:
        self._table = table
        self._host = host
        self._start_budget = start_budget
        self._stop_budget = stop_budget
        self._inherited = inherited_filters()
        log = logging.getLogger(f"{__name__}.{self.vmm}") if table.enable_debug else None
        self._children = Children(host, log)
        self._monitor: QmpClient | None = None
        self._warnings: list[str] = []
        self._running = False

    # -- start ---------------------------------------------------------------------------------------------

    async def _spawn_qemu(
        self, argv: Sequence[str], fds: Mapping[int, int], theirs: contextlib.ExitStack, shown: Privileges
    ) -> None:
        """Start QEMU, which waits for commands on its monitor. fds: what it inherits besides."""
        ours, monitor = self._children.channel(theirs)
        self._monitor = QmpClient(await self._host.hold_monitor(self.info.name, ours))
        self._children.ours.push_async_callback(self._monitor.aclose)
        await self._children.spawn(self.vmm, argv, {**fds, MONITOR: monitor}, privileges=shown)

    async def _connect(self) -> None:
        """Reach QEMU, whose virtual CPUs wait, and verify its confinement."""
        assert self._monitor is not None
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("waiting for qemu's monitor", deadline, self._monitor.connect())
        await self._attempt("reading qemu's confinement", deadline, self._verify_confinement())

    async def _start_vcpus(self) -> None:
        assert self._monitor is not None
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("starting the virtual CPUs", deadline, self._monitor.execute("cont"))

    # -- commands ------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """See the contract."""
        await self._command("pause", "stop")

    async def resume(self) -> None:
        """See the contract."""
        await self._command("resume", "cont")

    async def _command(self, purpose: str, name: str) -> None:
        if self._monitor is None or self._end is None or not self._running:
            raise HypervisorError(f"cannot {purpose} the virtual machine: it is not running")
        try:
            with anyio.fail_after(COMMAND_BUDGET):
                await self._monitor.execute(name)
        except TimeoutError:
            raise HypervisorError(
                f"cannot {purpose} the virtual machine: qemu gave no answer within {COMMAND_BUDGET:g} s"
            ) from None
        except QmpError as error:
            why = self._end.result().reason if self._end.done() else str(error)
            raise HypervisorError(f"cannot {purpose} the virtual machine: {why}") from error

    # -- confinement ---------------------------------------------------------------------------------------

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("cannot verify the confinement: the virtual machine is not running")
        try:
            await self._verify_confinement()
        except ProcessLookupError as error:
            raise HypervisorError("cannot verify the confinement: qemu has exited") from error

    async def _verify_confinement(self) -> None:
        threads = await self._host.confinement(self._children[self.vmm])
        setting = f'seccompsandbox = "{self._table.seccompsandbox}"'
        breach = find_breach(
            threads, self._table.confined, self._inherited, process=self.vmm, required_by=setting
        )
        if breach is not None:
            raise ConfinementError(f"{breach} (check that {self._table.path} is a qemu with seccomp support)")

    # -- end -----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Wait for a QEMU that is exiting, and then for what it has reported through its monitor.

        It hangs up on virtiofsd and on the monitor long before the kernel has torn down its machine.
        """
        qemu, monitor = self._children[self.vmm], self._monitor
        assert monitor is not None
        if qemu.exited is None and self._running and monitor.ended:
            with anyio.move_on_after(DYING):
                await qemu.wait()
        if qemu.exited is not None:
            with anyio.move_on_after(MOMENT):
                await monitor.wait_ended()

    def _conclude(self, exited: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        process = first_failure(self.vmm, VIRTIOFSD, exited)
        ending = Ending(
            process=process,
            status=exited[process],
            stderr=self._children.tail(f"{process} stderr"),
            console=self._children.tail(CONSOLE),
            shutdown=self._monitor.shutdown_reason if self._monitor else None,
            running=self._running,
        )
        reason = ending.describe(self._table)
        return VmExit(reason, process, exited[process], requested, self._children.outputs)

    async def _quit(self) -> bool:
        assert self._monitor is not None
        try:
            await self._monitor.execute("quit")
        except QmpError:
            return False
        return True

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return tuple(self._warnings)

    @property
    def console_tail(self) -> str:
        """See the contract; empty where the guest's console is not read here."""
        return self._children.tail(CONSOLE).text
