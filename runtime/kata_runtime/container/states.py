"""The states of a process and what may happen in each: one table, asked before every operation."""

from __future__ import annotations

import enum

from kata_runtime.errors import NotFoundError, StateError


class State(enum.Enum):
    """State of a container's init process or of an exec. The names are containerd's."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class Event(enum.Enum):
    """What moves a process from one state to another; the value is the verb for messages."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    EXIT = "exit"
    DELETE = "delete"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CREATED, Event.START): State.RUNNING,
    (State.CREATED, Event.EXIT): State.STOPPED,
    (State.CREATED, Event.DELETE): State.DELETED,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.EXIT): State.STOPPED,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.EXIT): State.STOPPED,
    (State.STOPPED, Event.DELETE): State.DELETED,
}


def after(state: State, event: Event, what: str) -> State:
    """The state that follows.

    what: the process, for the message, such as "container web".

    Raises:
        NotFoundError: the process is deleted.
        StateError: the table has no such transition.
    """
    if state is State.DELETED:
        raise NotFoundError(f"cannot {event.value} {what}: it is deleted")
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        allowed = ", ".join(s.value for s, e in TRANSITIONS if e is event)
        raise StateError(
            f"cannot {event.value} {what}: it is {state.value}, and must be {allowed.replace(', ', ' or ')}"
        ) from None
