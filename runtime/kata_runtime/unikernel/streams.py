"""The standard streams of a unikernel: a pair for each, of which its VMM gets one end."""

from __future__ import annotations

import fcntl
import os
import socket
from io import FileIO
from typing import TYPE_CHECKING

from kata_runtime.stdio.files import STREAMS, StdioPaths, write_line

if TYPE_CHECKING:
    from kata_runtime.stdio.pumps import Stream

PIPE_SIZE = 1 << 20  # the most that an unprivileged process gets; fs.pipe-max-size of Linux


class UnikernelStreams:
    """A pair for each stream that the container has, and one for its output in any case."""

    def __init__(self, paths: StdioPaths) -> None:
        # Our ends, until they are taken, and the unikernel's: both by name.
        self._ours: dict[str, Stream] = {}
        self._theirs: dict[str, Stream] = {}
        for name in STREAMS:
            if getattr(paths, name) or name == "stdout":
                self._make(name, wanted=bool(getattr(paths, name)))
        if (stdin := self._theirs.pop("stdin", None)) is not None:
            stdin.close()  # a unikernel reads none

    def _make(self, name: str, *, wanted: bool) -> None:
        ours: Stream
        theirs: Stream
        ours, theirs = socket.socketpair() if name == "stdin" else _pipe()
        os.set_blocking(ours.fileno(), False)
        self._theirs[name] = theirs
        if wanted:
            self._ours[name] = ours
        else:
            ours.close()  # what is written there is lost

    @property
    def output(self) -> int:
        """The descriptor to which the unikernel writes."""
        return self._theirs["stdout"].fileno()

    def take(self) -> dict[str, Stream]:
        """Our ends, which are the caller's from here on."""
        taken, self._ours = self._ours, {}
        return taken

    def write_notice(self, text: str) -> None:
        """Write a last line of the runtime's own, behind what the unikernel has printed."""
        stream = self._theirs.get("stderr") or self._theirs.get("stdout")
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
            write_line(stream.fileno(), text)

    def close_output(self) -> None:
        """Let the readers of the output see its end. Idempotent."""
        for stream in self._theirs.values():
            stream.close()
        self._theirs.clear()

    def close(self) -> None:
        """Close every end that is left. Idempotent."""
        for stream in self.take().values():
            stream.close()
        self.close_output()


def _pipe() -> tuple[FileIO, FileIO]:
    """For output: where a VMM writes byte by byte, a pipe holds a thousand times what a socket does.

    Firecracker drops what there is no room for, so there is as much as can be had.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return FileIO(reader, "r"), FileIO(writer, "w")
