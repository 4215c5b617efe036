"""The guest's console on its way from the serial port to its reader: a pipe, which may be full."""

from __future__ import annotations

import contextlib
import logging
import os

import anyio

from kata_hypervisor.output_tail import Follower, follow


class Console:
    """The end of what a guest has printed.

    A guest that writes faster than they are read loses some: its processors never wait for a reader.
    """

    def __init__(self, follower: Follower, writer: int) -> None:
        self._follower = follower
        self._writer = writer

    @classmethod
    async def open(cls, log: logging.Logger) -> Console:
        """Make the pipe and follow it. log: gets each complete line, at debug."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            follower = await follow(os.fdopen(reader, "rb", buffering=0), log)
        except BaseException:
            os.close(writer)
            raise
        return cls(follower, writer)

    def write(self, data: bytes) -> None:
        """Take what the guest has printed; any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, data)

    @property
    def text(self) -> str:
        """The last lines."""
        return self._follower.tail.text

    async def finish(self, patience: float) -> None:
        """Nobody writes any more: read what is left, for some seconds at most. Idempotent."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        with anyio.move_on_after(patience):
            await self._follower.ended.wait()

    async def aclose(self) -> None:
        """Close the pipe."""
        await self.finish(0)
        await self._follower.aclose()
