"""What is asked of a QEMU that runs, whatever runs in it: through its monitor, and of the kernel."""

from __future__ import annotations

import abc

import anyio

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.errors import ConfinementError, HypervisorError
from kata_hypervisor.host import Child, Host
from kata_hypervisor.lifecycle import ProcessLifecycle
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.seccomp.confinement import find_breach

COMMAND_BUDGET = 10.0
"""Seconds that QEMU gets to answer a command while the machine runs."""


class QmpControlled(ProcessLifecycle):
    """A machine in QEMU. _inherited: how many filters its process was born with."""

    _hang_ups = (QmpError, ProcessLookupError)
    _table: QemuTable
    _host: Host
    _inherited: int
    _monitor: QmpClient | None = None
    _running = False

    @property
    @abc.abstractmethod
    def _qemu(self) -> Child:
        """Its process."""

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

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("there is no confinement to prove: the virtual machine is not running")
        try:
            await self._verify_confinement()
        except ProcessLookupError as error:
            raise HypervisorError("there is no confinement to prove: qemu has ended") from error

    async def _verify_confinement(self) -> None:
        threads = await self._host.confinement(self._qemu)
        breach = find_breach(threads, self._table.confined, self._inherited)
        if breach is not None:
            raise ConfinementError(
                f'qemu is not confined as seccompsandbox = "{self._table.seccompsandbox}" asks: {breach} '
                f"(check that {self._table.path} is a qemu with seccomp support)"
            )
