"""The states of a sandbox and what may happen in each: one table, asked before anything is begun.

A state is claimed without an await between the question and the answer: of two that ask at once, one is
refused.
"""

from __future__ import annotations

import enum
import time

import anyio

from kata_runtime.errors import StateError


class State(enum.Enum):
    """State of a sandbox. WAITING: made ready as far as its network; the machine boots when that is known."""

    NEW = "new"
    BOOTING = "booting"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Event(enum.Enum):
    """What moves a sandbox from one state to another; the value is the verb for messages."""

    BOOT = "boot"
    WAIT = "defer"
    READY = "finish the boot of"
    END = "end"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.BOOT): State.BOOTING,
    (State.NEW, Event.END): State.ENDED,
    (State.BOOTING, Event.WAIT): State.WAITING,
    (State.WAITING, Event.BOOT): State.BOOTING,
    (State.WAITING, Event.END): State.ENDED,
    (State.BOOTING, Event.READY): State.RUNNING,
    (State.BOOTING, Event.END): State.ENDED,
    (State.RUNNING, Event.END): State.ENDED,
}


class Lifecycle:
    """Where one sandbox is in its life.

    reason: of the end, one line; None before it. ended_at: nanoseconds since the epoch; 0 before the end.
    """

    def __init__(self, sandbox_id: str) -> None:
        self.state = State.NEW
        self.reason: str | None = None
        self.ended_at = 0
        self._sandbox_id = sandbox_id
        self._ended = anyio.Event()
        self._released = anyio.Event()

    @property
    def description(self) -> str:
        """The sandbox and its state, as a sentence."""
        return f"sandbox {self._sandbox_id} {self._predicate}"

    @property
    def _predicate(self) -> str:
        if self.state is State.ENDED:
            return f"has ended: {self.reason}"
        return {
            State.NEW: "has not been started",
            State.BOOTING: "is still booting",
            State.WAITING: "waits for the start of its container",
        }.get(self.state, "is running")

    def apply(self, event: Event) -> None:
        """Move to the state after an event. Raises StateError where the table has none."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise StateError(
                f"cannot {event.value} sandbox {self._sandbox_id}: it {self._predicate}"
            ) from None

    def end(self, reason: str) -> bool:
        """Record the end; False when it was recorded before, whose reason stays."""
        if self.state is State.ENDED:
            return False
        self.apply(Event.END)
        self.reason = reason.partition("\n")[0]
        self.ended_at = time.time_ns()
        self._ended.set()
        return True

    def release(self) -> None:
        """After the end: nothing of it is left on the host."""
        self._released.set()

    async def wait_ended(self) -> None:
        """Return once its end was recorded."""
        await self._ended.wait()

    async def wait_released(self) -> None:
        """Return once it has ended and nothing of it is left."""
        await self._released.wait()
