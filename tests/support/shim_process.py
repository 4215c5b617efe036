"""A process behind the task service, as a client of containerd sees it: its streams, its calls, its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from fifo_stdio import Input, Output
from patience import PATIENCE

if TYPE_CHECKING:
    from shim_harness import Shim


@dataclass(frozen=True)
class Finished:
    """How a process ended and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output; fails when the process did not succeed, or wrote to standard error."""
        assert (self.status, self.stderr) == (0, b""), self
        return self.stdout.decode()


class Streams:
    """The FIFOs of one process in a directory of their own."""

    def __init__(
        self, directory: Path, *, stdin: bool = False, output: bool = True, terminal: bool = False
    ) -> None:
        directory.mkdir(parents=True)
        self.terminal = terminal
        self.stdin = Input(directory / "stdin") if stdin else None
        self.stdout = Output(directory / "stdout") if output else None
        self.stderr = Output(directory / "stderr") if output and not terminal else None

    @property
    def fields(self) -> dict[str, Any]:
        """What a Create or Exec request says of them."""
        named = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}
        paths = {name: str(fifo.path) for name, fifo in named.items() if fifo is not None}
        return {**paths, "terminal": self.terminal}

    def open_outputs(self) -> None:
        for fifo in (self.stdout, self.stderr):
            if fifo is not None:
                fifo.open()

    def close(self) -> None:
        for fifo in (self.stdin, self.stdout, self.stderr):
            if fifo is not None:
                fifo.close()


class Process:
    """A container's first process (exec_id is empty) or an exec, as a client of containerd sees it."""

    def __init__(self, shim: Shim, container_id: str, exec_id: str, streams: Streams) -> None:
        self.shim = shim
        self.id = container_id
        self.exec_id = exec_id
        self.streams = streams

    async def call(self, method: str, **fields: Any) -> Any:
        """Call a method of the task service about this process."""
        return await self.shim.task(method, id=self.id, exec_id=self.exec_id, **fields)

    async def start(self) -> int:
        """Start; returns the pid that containerd gets."""
        pid: int = (await self.call("Start")).pid
        return pid

    async def wait(self) -> int:
        """The exit status."""
        status: int = (await self.call("Wait")).exit_status
        return status

    async def kill(self, number: int = 9, *, everyone: bool = False) -> None:
        await self.call("Kill", signal=number, all=everyone)

    async def delete(self) -> int:
        """Delete; returns the exit status."""
        try:
            status: int = (await self.call("Delete")).exit_status
        finally:
            self.streams.close()
        return status

    async def close_stdin(self) -> None:
        await self.call("CloseIO", stdin=True)

    async def resize(self, columns: int, rows: int) -> None:
        await self.call("ResizePty", width=columns, height=rows)

    async def state(self) -> Any:
        return await self.call("State")

    async def finish(self, stdin: bytes | None = None) -> Finished:
        """Feed it, read what it writes, wait for its end and delete it."""
        outputs: dict[str, bytes] = {"stdout": b"", "stderr": b""}

        async def feed(fifo: Input, data: bytes) -> None:
            await fifo.write(data)
            fifo.close()

        async def read(name: str, fifo: Output) -> None:
            outputs[name] = await fifo.read_all()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                if self.streams.stdin is not None:
                    group.start_soon(feed, self.streams.stdin, stdin or b"")
                for name in outputs:
                    fifo = getattr(self.streams, name)
                    if fifo is not None:
                        group.start_soon(read, name, fifo)
                status = await self.wait()
                deleted = await self.delete_keeping_streams()
        self.streams.close()
        assert deleted == status
        return Finished(status, **outputs)

    async def delete_keeping_streams(self) -> int:
        """Delete, while somebody still reads the streams."""
        status: int = (await self.call("Delete")).exit_status
        return status
