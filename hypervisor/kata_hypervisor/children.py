"""The processes of one machine: started with what they inherit, read, supervised, and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio

from kata_hypervisor.host import Child, ExitStatus, Host
from kata_hypervisor.output_tail import Follower, Tail, follow
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp.child_filter import ChildFilter

STDOUT, STDERR = 1, 2

MOMENT = 0.1
"""Seconds within which two exits belong together, and in which what was written before arrives."""


class Reader(Follower):
    """A follower that passes on what it reads, and keeps the end of it.

    take: called with each piece.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self._take = take

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback."""
        super().data_received(data)
        self._take(data)


class Children:
    """The processes of one machine, by name.

    host: starts them. log: where their output goes line by line, at debug, or None.
    """

    def __init__(self, host: Host, log: logging.Logger | None) -> None:
        self._host = host
        self._log = log
        self._children: dict[str, Child] = {}
        self._followers: dict[str, Follower] = {}
        # What this process holds of the machine; closed when its processes have exited.
        self.ours = contextlib.AsyncExitStack()

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def __bool__(self) -> bool:
        return bool(self._children)

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        stdout: str | None = None,
        gate: int | None = None,
        seccomp: ChildFilter | None = None,
        privileges: Privileges | None = None,
    ) -> Child:
        """Start a process with these descriptors and a standard error that is kept.

        stdout: the heading under which its standard output is kept too. seccomp: its filter, from before its
        program runs. gate, privileges: see `Host.spawn`. Raises LaunchError.
        """
        with contextlib.ExitStack() as theirs:
            ends = {STDERR: await self.pipe(f"{name} stderr", theirs)}
            if stdout is not None:
                ends[STDOUT] = await self.pipe(stdout, theirs)
            child = await self._host.spawn(
                name, argv, fds={**fds, **ends}, gate=gate, seccomp=seccomp, privileges=privileges
            )
        self._children[name] = child
        return child

    async def pipe(self, heading: str, theirs: contextlib.ExitStack) -> int:
        """Make a pipe whose content is kept under a heading; return the end to write, closed by `theirs`."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, writer)
        await self._follow(heading, os.fdopen(reader, "rb", buffering=0))
        return writer

    async def connection(self, heading: str, theirs: contextlib.ExitStack) -> int:
        """As `pipe`, for a program that wants a connected socket to write to."""
        ours, end = socket.socketpair()
        theirs.callback(end.close)
        self.ours.callback(ours.close)
        await self._follow(heading, ours)
        return end.fileno()

    async def _follow(self, heading: str, stream: object) -> None:
        log = self._log.getChild(heading.replace(" ", "_")) if self._log is not None else None
        follower = await follow(stream, log)
        self._followers[heading] = follower
        self.ours.push_async_callback(follower.aclose)

    def channel(self, theirs: contextlib.ExitStack) -> tuple[socket.socket, int]:
        """Make a pair of connected sockets; return ours, and the descriptor of the end for a child."""
        ours, end = socket.socketpair()
        theirs.callback(end.close)
        self.ours.callback(ours.close)
        return ours, end.fileno()

    async def read(self, take: Callable[[bytes], None], theirs: contextlib.ExitStack) -> int:
        """Make a pipe whose content goes to a function; return the end to write, closed by `theirs`."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, writer)
        follower = Reader(take)
        await follower.follow(os.fdopen(reader, "rb", buffering=0))
        self.ours.push_async_callback(follower.aclose)
        return writer

    def tail(self, heading: str) -> Tail:
        """What is kept under a heading."""
        follower = self._followers.get(heading)
        return follower.tail if follower else Tail()

    @property
    def outputs(self) -> dict[str, str]:
        """Everything that is kept and not empty, by heading."""
        texts = {heading: follower.tail.text for heading, follower in self._followers.items()}
        return {heading: text for heading, text in texts.items() if text}

    async def watch(
        self, settle: Callable[[], Awaitable[None]], *, on_exit: Callable[[], None] | None = None
    ) -> dict[str, ExitStatus]:
        """Wait for the first exit, then stop all; return which had exited by then, and how.

        on_exit: called at the first exit. settle: awaited after it, for what the VMM may still do by itself.
        """
        waits = {name: asyncio.ensure_future(child.wait()) for name, child in self._children.items()}
        await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
        if on_exit is not None:
            on_exit()
        await asyncio.wait(waits.values(), timeout=MOMENT)
        await settle()
        exited = {name: task.result() for name, task in waits.items() if task.done()}
        await self.kill()
        await asyncio.wait(waits.values())
        await self.drain_outputs()
        return exited

    async def drain_outputs(self) -> None:
        """Read what was written before; a grandchild that holds a pipe open delays nothing for long."""
        with anyio.move_on_after(MOMENT):
            for follower in self._followers.values():
                await follower.ended.wait()

    async def kill(self) -> None:
        """Kill all; nothing for those that have exited."""
        for child in self._children.values():
            await child.kill()

    async def wait(self) -> None:
        """Return when all have exited."""
        for child in self._children.values():
            await child.wait()
