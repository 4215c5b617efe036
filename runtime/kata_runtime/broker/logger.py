"""The logger of a sandbox's first container: a program of the operator's that takes the container's output.

It is named by the URI that containerd gives for the streams, and started before the seal, once: whoever owns
the shim or the broker afterwards has no program run. It gets the read ends of two pipes, the shim the write
ends. It runs where containerd's own shim would run it: as root, in the host's namespaces, with two variables
and no descriptor but its own.

When its pipes have ended it exits by itself. One that does not is asked to by SIGTERM, and killed in the end,
also by a cleanup for a broker that was killed.

Source: containerd, cmd/containerd-shim-runc-v2/process/io.go (NewBinaryIO, 12 s after SIGTERM), io_util.go.
"""

from __future__ import annotations

import os

from kata_runtime.broker import processes, spawn
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.origin import Origin
    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.identity import SandboxIdentity

ROLE = "logger"
SCHEMES = ("binary", "binary-v2")
PATIENCE = 12.0
"""Seconds that it may take to exit when its pipes have ended, and again after SIGTERM."""
STDOUT, STDERR, READY = 3, 4, 5
"""Its descriptors: what it reads, and where it writes a byte, or closes, when it is ready."""


class Logger:
    """The logger of one sandbox; none until `start`."""

    def __init__(self, identity: SandboxIdentity, origin: Origin, journal: RollbackJournal) -> None:
        self._identity = identity
        self._origin = origin
        self._journal = journal
        self._started: tuple[int, int] | None = None
        self._entry = 0

    @property
    def roles(self) -> dict[int, str]:
        """Its role by its process id; nothing without one."""
        return {self._started[0]: ROLE} if self._started else {}

    def start(self, uri: str) -> tuple[int, int, int]:
        """Start the program; return the pipe that says when it is ready, and the write ends for the output.

        Raises:
            RequestRefusedError: the sandbox has its logger. RequestFailedError: it is none, or does not run.
        """
        if self._started is not None:
            raise RequestRefusedError("start_logger: the sandbox has its logger already")
        argv = command(uri)
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (out_read, out_write), (err_read, err_write), (ready_read, ready_write) = pipes
        theirs, ours = (out_read, err_read, ready_write), (ready_read, out_write, err_write)
        try:
            spawn.spawn(
                f"the {ROLE}",
                argv,
                dict(zip((STDOUT, STDERR, READY), theirs, strict=True)),
                {"CONTAINER_ID": self._identity.id, "CONTAINER_NAMESPACE": self._identity.namespace},
                self._record,
                enter=self._origin.enter_host,
                outlives=True,
            )
        except BaseException:
            self._started = None
            self._journal.drop(self._entry)
            _close(ours)
            raise
        finally:
            _close(theirs)
        for end in ours:
            os.set_blocking(end, False)
        return ours

    def _record(self, pid: int, start: int) -> None:
        self._entry = self._journal.push("process", pid=pid, start=start, name=ROLE, patience=PATIENCE)
        self._started = pid, start

    def finish(self) -> None:
        """End it, when what writes to it is gone; it takes what is in its pipes before."""
        if self._started is not None:
            processes.retire(*self._started, PATIENCE)


def command(uri: str) -> list[str]:
    """The argv that a URI stands for: its path, and the key and first value of each of its parameters.

    Raises:
        RequestFailedError: it is no such URI.
    """
    from urllib.parse import parse_qsl, unquote, urlsplit

    try:
        parts = urlsplit(uri)
        pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
    except ValueError as error:
        raise RequestFailedError(f"cannot log to {uri!r}: {error}") from None
    path = unquote(parts.path, errors="surrogateescape")
    if parts.scheme not in SCHEMES or parts.netloc or not path.startswith("/"):
        raise RequestFailedError(f"cannot log to {uri!r}: a logger is named as binary:///path?key=value")
    first: dict[str, str] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    argv = [path, *(word for pair in first.items() for word in pair)]
    if any("\0" in word for word in argv):
        raise RequestFailedError(f"cannot log to {uri!r}: it has a null byte")
    return argv


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
