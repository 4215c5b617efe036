"""A QEMU process, whatever runs in it: started with its monitor, asked through it, verified, and its end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from kata_hypervisor.children import MOMENT, Children
from kata_hypervisor.contract import VmExit
from kata_hypervisor.errors import ConfinementError, HypervisorError
from kata_hypervisor.exit_reason import first_failure
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import ProcessLifecycle
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu import allowlist
from kata_hypervisor.qemu.command import MONITOR
from kata_hypervisor.qemu.diagnosis import Ending
from kata_hypervisor.qemu.info import QEMU
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters
from kata_hypervisor.virtiofsd import NAME as VIRTIOFSD

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

CONSOLE = "console"

DYING = 10.0
"""Seconds that the kernel may take to tear down a QEMU whose descriptors it has closed."""


class QmpControlled(ProcessLifecycle):
    """A machine in QEMU.

    table: [hypervisor.qemu] of the configuration. host: starts the processes. start_budget, stop_budget:
    seconds that QEMU gets until its virtual CPUs run, and to answer, the host's patience without; and to exit
    by itself.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    info = QEMU
    _hang_ups = (QmpError, ProcessLookupError)

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float | None = None, stop_budget: float = 1.0
    ) -> None:
        self._table = table
        self._host = host
        self._start_budget = host.patience if start_budget is None else start_budget
        self._stop_budget = stop_budget
        self._inherited = self._born_with = inherited_filters()
        self._children = Children(host, logging.getLogger(f"{__name__}.{self.vmm}"))
        self._monitor: QmpClient | None = None
        self._warnings: list[str] = []
        self._running = False

    # -- start ---------------------------------------------------------------------------------------------

    async def _spawn_qemu(
        self,
        argv: Sequence[str],
        fds: Mapping[int, int],
        theirs: contextlib.ExitStack,
        shown: Privileges,
        *,
        block: bool = False,
        grows: bool = False,
    ) -> None:
        """Start QEMU, which waits for commands on its monitor.

        fds: what it inherits besides. block, grows: see `allowlist.build`.
        """
        ours, monitor = self._children.channel(theirs)
        self._monitor = QmpClient(await self._host.hold_monitor(self.info.name, ours))
        self._children.ours.push_async_callback(self._monitor.aclose)
        seccomp = None
        if self._table.confined:
            seccomp, self._born_with = (
                allowlist.build(self._table, block=block, grows=grows),
                self._inherited + 1,
            )
        fds = {**fds, MONITOR: monitor}
        await self._children.spawn(self.vmm, argv, fds, seccomp=seccomp, privileges=shown)

    async def _connect(self) -> None:
        """Reach QEMU, which has loaded all and whose virtual CPUs wait; verify its confinement."""
        assert self._monitor is not None
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("waiting for qemu's monitor", deadline, self._monitor.connect())
        await self._attempt("reading qemu's confinement", deadline, self._prove_confinement())

    async def _start_vcpus(self) -> None:
        assert self._monitor is not None
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("starting the virtual CPUs", deadline, self._monitor.execute("cont"))

    # -- commands ------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """See the contract."""
        await self._command("pause the virtual machine", self._execute("stop"))

    async def resume(self) -> None:
        """See the contract."""
        await self._command("resume the virtual machine", self._execute("cont"))

    async def _execute(self, name: str) -> object:
        assert self._monitor is not None
        return await self._monitor.execute(name)

    async def _command(self, purpose: str, answer: Coroutine[Any, Any, object]) -> object:
        """Await what the monitor answers to a running machine's command. purpose: "pause the machine"."""
        if self._monitor is None or self._end is None or not self._running:
            answer.close()
            raise HypervisorError(f"cannot {purpose}: it is not running")
        try:
            with anyio.fail_after(self._start_budget):
                return await answer
        except TimeoutError:
            raise HypervisorError(
                f"cannot {purpose}: qemu gave no answer within {self._start_budget:g} s"
            ) from None
        except QmpError as error:
            raise self._refusal(purpose, error) from error

    def _refusal(self, purpose: str, error: QmpError) -> HypervisorError:
        """The error for a command that failed, with the reason why QEMU has ended if it has."""
        assert self._end is not None
        why = self._end.result().reason if self._end.done() else str(error)
        return HypervisorError(f"cannot {purpose}: {why}")

    # -- confinement ---------------------------------------------------------------------------------------

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("cannot verify the confinement: the virtual machine is not running")
        try:
            await self._verify_confinement()
        except ProcessLookupError as error:
            raise HypervisorError("cannot verify the confinement: qemu has exited") from error

    async def _prove_confinement(self) -> None:
        """Have the filters allow no more than a running machine needs, and read them back."""
        if self._table.confined:
            await self._host.end_loading(self._children[self.vmm])
        await self._verify_confinement()
        if self._table.confined:
            await self._verify_effective(self._born_with, self._setting)

    @property
    def _setting(self) -> str:
        return f'seccompsandbox = "{self._table.seccompsandbox}"'

    async def _verify_confinement(self) -> None:
        threads = await self._host.confinement(self._children[self.vmm])
        breach = find_breach(
            threads, self._table.confined, self._born_with, process=self.vmm, required_by=self._setting
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
        reason = self._children[process].violation or ending.describe(self._table)
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
