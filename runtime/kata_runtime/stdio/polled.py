"""A process's standard streams by ReadStdout, ReadStderr and WriteStdin, for agents without streams.

Upstream's agent answers a read with the data that is there, and with an error once the stream has ended.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from kata_agent.protos import agent_pb2
from kata_hypervisor.concurrency import race
from kata_runtime.stdio.files import StdioFiles
from kata_runtime.stdio.moving import has_input
from kata_runtime.stdio.pumps import Stdio

if TYPE_CHECKING:
    from kata_agent.client import AgentClient

CHUNK = 32 << 10

Read = Callable[[agent_pb2.ReadStreamRequest], Awaitable[agent_pb2.ReadStreamResponse]]


class PolledStdio(Stdio):
    """Pumps the streams of one process with calls to the agent."""

    def __init__(
        self, files: StdioFiles, agent: AgentClient, container_id: str, exec_id: str, *, terminal: bool
    ) -> None:
        super().__init__(files, {})
        self._terminal = terminal
        self._agent = agent
        self._container_id = container_id
        self._exec_id = exec_id

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start pumping in the background.

        The guest makes all three pipes, so input that has no FIFO is ended, and output without one is
        emptied: the process would wait for ever. A terminal has no standard error, and ending its input would
        end it.
        """
        pumps = {"stdin": self._pump_input, "stdout": self._pump_stdout, "stderr": self._pump_stderr}
        if self._terminal:
            del pumps["stderr"]
            if self._files.stdin < 0:
                del pumps["stdin"]
        self._begin(tasks, pumps)

    async def _pump_stdout(self) -> None:
        await self._read_output(self._files.stdout, self._agent.read_stdout)

    async def _pump_stderr(self) -> None:
        await self._read_output(self._files.stderr, self._agent.read_stderr)

    async def _read_output(self, fifo: int, read: Read) -> None:
        request = agent_pb2.ReadStreamRequest(
            container_id=self._container_id, exec_id=self._exec_id, len=CHUNK
        )
        while data := (await read(request)).data:
            self._progress += len(data)
            if fifo >= 0:
                await _write_all(fifo, data)

    async def _pump_input(self) -> None:
        fifo = self._files.stdin
        while data := await self._read_input(fifo):
            while data:
                request = agent_pb2.WriteStreamRequest(
                    container_id=self._container_id, exec_id=self._exec_id, data=data
                )
                written = (await self._agent.write_stdin(request)).len
                data = data[written:]
        request_close = agent_pb2.CloseStdinRequest(container_id=self._container_id, exec_id=self._exec_id)
        await self._agent.close_stdin(request_close)

    async def _read_input(self, fifo: int) -> bytes:
        """What is in the FIFO, at least a byte; nothing at its end, or once CloseIO was asked for."""
        while fifo >= 0:
            if not self._stdin_closing.is_set():
                await race(lambda: anyio.wait_readable(fifo), self._stdin_closing.wait)
            if self._stdin_closing.is_set() and not has_input(fifo):
                return b""
            try:
                return os.read(fifo, CHUNK)
            except BlockingIOError:
                continue
        return b""


async def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await anyio.wait_writable(fd)
