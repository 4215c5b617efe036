"""Operations on what containerd gives for the standard streams of a container."""

from __future__ import annotations

import os

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context

FIFO_MODES = {
    "r": os.O_RDONLY | os.O_NONBLOCK,
    "w": os.O_WRONLY | os.O_NONBLOCK,
    "rw": os.O_RDWR | os.O_NONBLOCK,
}


@operation(ALWAYS, path=checks.path, mode=checks.one_of(FIFO_MODES))
def open_fifo(context: Context, *, path: str, mode: str) -> Reply:
    """Open a FIFO without blocking. With "w", the errno ENXIO says that nobody reads it."""
    return Reply(context.streams.open_fifo(path, FIFO_MODES[mode]))


@operation(ALWAYS, path=checks.path)
def open_log(context: Context, *, path: str) -> Reply:
    """Have what is written to a pipe appended to a regular file, which is made where it is missing."""
    return Reply(context.logs.add(context.streams.open_log(path)))


@operation(BEFORE_SEAL, uri=checks.uri)
def start_logger(context: Context, *, uri: str) -> Reply:
    """Start the program that takes the output of the first container, once; see `kata_runtime.broker.logger`.

    Answers with a pipe that says when it is ready, and the pipes for standard output and error.
    """
    return Reply(*context.logger.start(uri))
