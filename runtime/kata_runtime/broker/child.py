"""Children of the broker, as the shim knows them."""

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
        self._exited = anyio.Event()

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
        """How it exited, or None while it runs."""
        return self._status

    @property
    def violation(self) -> str:
        """The call that its filter refused, and for which the broker killed it, in a sentence."""
        return self._refused.get(self._pid, "")

    async def wait(self) -> ExitStatus:
        """Return once it has exited; any number of tasks may wait."""
        await self._exited.wait()
        assert self._status is not None
        return self._status

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; does nothing when it has exited."""
        if self._status is None:
            await self._kill(self, number)

    def set_exited(self, status: ExitStatus) -> None:
        """Note how it exited; the first report counts."""
        if self._status is None:
            self._status = status
            self._exited.set()


class BrokerChildren:
    """All children of one broker. kill: sends a signal to one of them."""

    def __init__(self, kill: Kill) -> None:
        self._kill = kill
        self._running: dict[int, BrokerChild] = {}
        # Exits that were reported before the task that started the child could run again.
        self._early: dict[int, ExitStatus] = {}
        self._refused: dict[int, str] = {}
        self._lost = False

    def add(self, name: str, pid: int) -> Child:
        """Make the object for a child that the broker has started."""
        child = BrokerChild(name, pid, self._kill, self._refused)
        if (status := self._early.pop(pid, None)) is not None:
            child.set_exited(status)
        elif self._lost:
            child.set_exited(ExitStatus(signal=signal.SIGKILL))
        else:
            self._running[pid] = child
        return child

    def on_exited(self, pid: int, status: ExitStatus) -> None:
        """The broker has reaped a child."""
        if (child := self._running.pop(pid, None)) is not None:
            child.set_exited(status)
        else:
            self._early[pid] = status

    def on_refused(self, pid: int, sentence: str) -> None:
        """The broker kills a child for a call that its filter refused."""
        self._refused[pid] = sentence

    def on_lost(self) -> None:
        """The broker has exited: the kernel has killed all its children (PR_SET_PDEATHSIG)."""
        self._lost = True
        for child in self._running.values():
            child.set_exited(ExitStatus(signal=signal.SIGKILL))
        self._running.clear()
