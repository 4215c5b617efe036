"""The life of a machine: the stages of its start, each raced against its end, and the end itself.

The end is one task or future. It is asked for once, by whomever, and waited for by everybody; nobody who is
cancelled meanwhile leaves it half done. Every stage looks at it, never at a silent socket.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

import anyio

from kata_hypervisor.children import Children
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import VmExit, Vmm, VmmProcess
from kata_hypervisor.driver_info import DriverInfo
from kata_hypervisor.errors import (
    ConfinementError,
    HypervisorError,
    LaunchError,
    MachineFailedError,
    SealError,
)
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.virtiofsd import NAME as VIRTIOFSD

T = TypeVar("T")

EXIT_GRACE = 1.0
"""Seconds in which a VMM that has closed its connection is seen to exit."""


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
        await finish(self._stopping)

    @abc.abstractmethod
    async def _stop(self) -> None:
        """End whatever exists of the machine, in a task that nobody cancels; idempotent."""

    async def wait(self) -> VmExit:
        """See the contract."""
        if self._end is None:
            raise HypervisorError("there is no machine to wait for: it was not started")
        return await asyncio.shield(self._end)


class ProcessLifecycle(VmLifecycle):
    """A machine in a VMM of its own, with helpers: their start, supervision and stop.

    info: the driver, whose program is the name of the VMM's process among _children. _hang_ups: errors of an
    answer which say that the VMM is exiting. _refusals: those of them after which it goes on living.
    _host: starts them. _warnings: for the operator. _start_budget, _stop_budget: seconds that it gets until
    its virtual CPUs run, and to exit by itself.
    """

    info: ClassVar[DriverInfo]
    _hang_ups: ClassVar[tuple[type[Exception], ...]]
    _refusals: ClassVar[tuple[type[Exception], ...]] = ()
    _host: Host
    _children: Children
    _warnings: list[str]
    _start_budget: float
    _stop_budget: float
    _launching: asyncio.Task[None] | None = None

    # -- what each VMM does its own way --------------------------------------------------------------------

    @abc.abstractmethod
    async def _settle(self) -> None:
        """A process has exited: wait for what the VMM still does by itself, and for what it still reports."""

    @abc.abstractmethod
    def _conclude(self, exited: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        """Say how the machine ended. exited: which processes had exited before the others were killed."""

    @abc.abstractmethod
    async def _quit(self) -> bool:
        """Ask the VMM to exit; whether it accepted that. Cancelled after _stop_budget."""

    # -- start ---------------------------------------------------------------------------------------------

    async def _launch(
        self, what: str, spawn: Callable[[], Awaitable[None]], connect: Callable[[], Awaitable[None]]
    ) -> None:
        """Start the processes, supervise them, and reach the VMM; whatever fails, nothing is left.

        what: for messages, "virtual machine of pod". spawn: starts them. connect: what follows when they run.

        Raises:
            LaunchError: it was used before, was stopped meanwhile, or as `spawn` and `connect` do.
        """
        if self._launching is not None or self._requested:
            raise LaunchError(f"cannot start the {what}: it was used before")

        async def launch() -> None:
            await spawn()
            self._end = asyncio.create_task(self._supervise(), name=f"{what}: end")

        # A task of its own: a child that starts while the caller is cancelled must be known, to be killed.
        self._launching = asyncio.create_task(launch(), name=f"{what}: processes")
        try:
            await asyncio.wait({self._launching})
            self._launching.result()
            if self._requested:
                raise LaunchError(f"the {what} was stopped while it started")
            await connect()
        except BaseException:
            await self.stop()
            raise

    def _failure(self, message: str) -> MachineFailedError:
        """The error for a stage that failed while no process has exited, with what they have written."""
        return MachineFailedError(f"{self.vmm} failed to start: {message}", self._children.outputs)

    async def _attempt(self, stage: str, deadline: float, action: Awaitable[T]) -> T:
        """Await one stage of the start against the machine's end and the deadline.

        Raises:
            LaunchError: the machine ended, the VMM closed the connection or refused, or the time is over.
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
                # It closed the connection, so it is exiting, and the exit status says more.
                await asyncio.wait({self._end}, timeout=EXIT_GRACE)
            if self._end.done():
                end = self._end.result()
                # A helper's failure says its cause; a VMM may not know its own.
                kind = MachineFailedError if end.process == self.vmm else LaunchError
                raise kind(end.reason, end.diagnostics)
            raise self._failure(f"{stage}: {error}")
        finally:
            work.cancel()
            await finish(_settled(work))

    # -- confinement ---------------------------------------------------------------------------------------

    async def _verify_effective(self, beyond: int, required_by: str) -> None:
        """See that its filters forbid something: a VMM may be built with filters that allow every call.

        beyond: how many filters, the oldest, are not its own. required_by: what asks for them. Warns where
        the kernel does not hand them out. Raises ConfinementError.
        """
        child = self._children[self.vmm]
        for thread in await self._host.confinement(child):
            if thread.filters <= beyond:
                continue
            try:
                effective = await self._host.filters_effective(child, thread.tid, beyond)
            except ProcessLookupError:
                continue  # the thread has ended
            except SealError as error:
                self._warnings.append(
                    f"cannot read the content of {self.vmm}'s filters, only their number: {error}"
                )
                return
            if not effective:
                raise ConfinementError(
                    f"the filter of thread {thread.tid} ({thread.name}) of {self.vmm} allows every system "
                    f"call; {required_by} requires one that refuses some: use a release build"
                )

    # -- end -----------------------------------------------------------------------------------------------

    async def _supervise(self) -> VmExit:
        """Wait for the first exit, then stop everything and close all that is held of the machine."""
        requested = False

        def note() -> None:
            nonlocal requested
            requested = self._requested

        try:
            return self._conclude(await self._children.watch(self._settle, on_exit=note), requested)
        finally:
            await self._children.ours.aclose()

    async def _stop(self) -> None:
        if self._launching is not None:
            await asyncio.wait({self._launching})
        if self._end is None:  # the VMM was never started
            await self._children.kill()
            await self._children.wait()
            await self._children.ours.aclose()
            return
        if not self._end.done():
            with anyio.move_on_after(self._stop_budget):
                if await self._quit():
                    await asyncio.wait({self._end})
            await self._children.kill()
        await asyncio.wait({self._end})

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def vmm(self) -> str:
        """How messages name the VMM's process."""
        return self.info.program

    @property
    def section(self) -> str:
        """How messages name its table of the configuration."""
        return f"[hypervisor.{self.info.name}]"

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        roles = ((self.vmm, "vmm"), (VIRTIOFSD, VIRTIOFSD))
        return tuple(VmmProcess(role, self._children[name]) for name, role in roles if name in self._children)


async def _settled(work: asyncio.Future[Any]) -> None:
    """Return when something has ended, in whatever way."""
    await asyncio.wait({work})
