"""Watches containers for kills by the kernel's out-of-memory killer.

memory.events of a cgroup is readable at once, and signals EPOLLPRI whenever a counter in it changes.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque

from kata_agent.guest import log
from kata_agent.guest.errors import StateError

_MOST_EVENTS = 1024


class OomWatcher:
    """Collects the ids of containers of which a process was killed, until the host asks for them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[str, int]] = {}  # by descriptor: container id, kills so far
        self._events: deque[str] = deque(maxlen=_MOST_EVENTS)
        self._asked = 0

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        threading.Thread(target=self._run, name="oom", daemon=True).start()

    def add(self, cid: str, directory: str) -> None:
        """Watch the cgroup in that directory; without a memory controller there is nothing to see."""
        try:
            descriptor = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with self._changed:
            self._watched[descriptor] = (cid, _kills(descriptor))
            self._epoll.register(
                descriptor, select.EPOLLPRI | select.EPOLLET
            )  # a removed file stays readable

    def remove(self, cid: str) -> None:
        """Stop watching a container; a kill that nobody has noticed yet is noticed now."""
        with self._changed:
            for descriptor in [number for number, (name, _) in self._watched.items() if name == cid]:
                self._look(descriptor)
                del self._watched[descriptor]
                self._epoll.unregister(descriptor)
                os.close(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                with self._changed:
                    if descriptor in self._watched:
                        self._look(descriptor)

    def _look(self, descriptor: int) -> None:
        cid, before = self._watched[descriptor]
        try:
            kills = _kills(descriptor)
        except OSError:
            return  # the cgroup is gone, and so is what it counted
        self._watched[descriptor] = (cid, kills)
        if kills > before:
            log.info(f"out of memory: a process of container {cid} was killed")
            self._events.append(cid)
            self._changed.notify_all()

    def next(self) -> str:
        """Wait for the next kill; returns the container's id.

        Only the latest caller gets events: an earlier one is a host that reconnected.

        Raises:
            StateError: a later caller took over.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._events or self._asked != mine)
            if self._asked != mine:
                raise StateError("another caller waits for out-of-memory events now")
            return self._events.popleft()


def _kills(descriptor: int) -> int:
    for line in os.pread(descriptor, 4096, 0).decode("ascii", "replace").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0
