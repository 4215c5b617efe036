"""A child of the broker, as the shim knows it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping

import anyio

from kata_hypervisor.host import Child, ExitStatus

Kill = Callable[[Child, int], Awaitable[None]]


class BrokerChild:
    """A child that the broker started; see `kata_hypervisor.host.Child`.

    refused: what the filters of children have refused, by process id.
    """

    def __init__(self, name: str, pid: int, kill: Kill, refused: Mapping[int, str]) -> None:
        self._kill = kill
        self._refused = refused
        self._name = name
        self._pid = pid
        self._status: ExitStatus | None = None
        self._ended = anyio.Event()

    @property
    def name(self) -> str:
        """The role under which it was started."""
        return self._name

    @property
    def pid(self) -> int:
        """Process id on the host."""
        return self._pid

    @property
    def exited(self) -> ExitStatus | None:
        """How it ended, or None while it runs."""
        return self._status

    @property
    def violation(self) -> str:
        """The call that its filter refused, and for which the broker killed it, in a sentence."""
        return self._refused.get(self._pid, "")

    async def wait(self) -> ExitStatus:
        """Return once it has ended; any number of tasks may wait."""
        await self._ended.wait()
        assert self._status is not None
        return self._status

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; does nothing when it has ended."""
        if self._status is None:
            await self._kill(self, number)

    def end(self, status: ExitStatus) -> None:
        """Note how it ended; the first word counts."""
        if self._status is None:
            self._status = status
            self._ended.set()
