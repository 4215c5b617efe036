"""Moving bytes from one descriptor to another, neither of which blocks."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios

import anyio

CHUNK = 1 << 20


async def move(source: int, target: int) -> int:
    """Move what is there, at least a byte, from one descriptor to the other; 0 at the end of the source."""
    while True:
        try:
            return os.splice(source, target, CHUNK, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            await _wait_ready(source, target)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return await _copy(source, target)


async def _wait_ready(source: int, target: int) -> None:
    await anyio.wait_readable(source)
    await anyio.wait_writable(target)


async def _copy(source: int, target: int) -> int:
    """As `move`, through this process: for a target such as a log file opened for appending."""
    while True:
        try:
            data = os.read(source, 1 << 16)
            break
        except BlockingIOError:
            await anyio.wait_readable(source)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            await anyio.wait_writable(target)
    return len(data)


def queued(fifo: int) -> int:
    """How many bytes are in a FIFO."""
    (count,) = struct.unpack("i", fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)))
    return int(count)


def has_input(fifo: int) -> bool:
    """Whether there is something in a FIFO. At its end there is nothing, and nothing will come."""
    return queued(fifo) > 0
