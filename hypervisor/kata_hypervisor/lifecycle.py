"""The life of a machine: the stages of its start, each held against its end, and the end itself.

The end is one task or future, made by the driver. It is asked for once, by whomever, and waited for by
everybody; nobody who is cancelled meanwhile leaves it half done.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable
from typing import ClassVar, TypeVar

import anyio

from kata_hypervisor.contract import VmExit, Vmm
from kata_hypervisor.errors import HypervisorError, LaunchError, MachineFailedError

T = TypeVar("T")

EXIT_GRACE = 1.0
"""Seconds in which a VMM that has hung up is seen to end."""


class VmLifecycle(Vmm):
    """What all drivers know of their machine's end."""

    _end: asyncio.Task[VmExit] | None = None
    _requested = False
    _stopping: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """See the contract."""
        self._requested = True
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.create_task(self._stop(), name="machine's stop")
        stopping = self._stopping
        with anyio.CancelScope(shield=True):
            await asyncio.wait({stopping})
        stopping.result()

    @abc.abstractmethod
    async def _stop(self) -> None:
        """End whatever exists of the machine, in a task that nobody cancels; idempotent."""

    async def wait(self) -> VmExit:
        """See the contract."""
        if self._end is None:
            raise HypervisorError("there is no machine to wait for: it was not started")
        return await asyncio.shield(self._end)


class ProcessLifecycle(VmLifecycle):
    """A machine in a VMM of its own, which answers the stages of its start.

    _hang_ups: errors of an answer which say that the VMM is ending. _refusals: those of them with which it
    goes on living.
    """

    _hang_ups: ClassVar[tuple[type[Exception], ...]]
    _refusals: ClassVar[tuple[type[Exception], ...]] = ()
    _start_budget: float

    @abc.abstractmethod
    def _failure(self, message: str) -> MachineFailedError:
        """The error for a stage that failed while no process has exited, with what the VMM has written."""

    async def _attempt(self, stage: str, deadline: float, action: Awaitable[T]) -> T:
        """Await one stage of the start against the machine's end and the deadline.

        Raises:
            LaunchError: the machine ended, the VMM hung up or refused, or the time is over.
        """
        assert self._end is not None
        work = asyncio.ensure_future(action)
        try:
            budget = max(0.0, deadline - anyio.current_time())
            await asyncio.wait({work, self._end}, timeout=budget, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._end.done():
                raise self._failure(f"{stage}: no answer within {self._start_budget:g} s")
            error = work.exception() if work.done() else None
            if work.done() and not isinstance(error, self._hang_ups):
                return work.result()
            if not isinstance(error, self._refusals):
                # It hung up, so it is ending: the exit status says more than the broken connection.
                await asyncio.wait({self._end}, timeout=EXIT_GRACE)
            if self._end.done():
                end = self._end.result()
                ours = self.processes[0].child.name == end.process  # and not a helper, which knows no KVM
                raise (MachineFailedError if ours else LaunchError)(end.reason, end.diagnostics)
            raise self._failure(f"{stage}: {error}")
        finally:
            work.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({work})
