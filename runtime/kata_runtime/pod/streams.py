"""A process's streams: what containerd named on the host, connected with the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_agent.constants import STREAM_PORT
from kata_runtime.stdio.polled import PolledStdio
from kata_runtime.stdio.pumps import Stdio, StdioFiles

if TYPE_CHECKING:
    from kata_runtime.container.process import Process
    from kata_runtime.pod.sandbox import Sandbox


async def open_files(sandbox: Sandbox, process: Process) -> StdioFiles:
    """Open the FIFOs and logs of a process, through the broker. Raises InvalidRequestError, BrokerError."""
    broker = sandbox.broker
    return await StdioFiles.open(process.paths, broker.open_fifo, broker.open_log)


async def connect(sandbox: Sandbox, process: Process, files: StdioFiles) -> dict[str, int]:
    """Connect a process's streams to the guest; returns its numbers of them, none when they are polled."""
    if not sandbox.stream_io:
        process.stdio = PolledStdio(
            files,
            sandbox.agent,
            process.container_id,
            process.guest_id,
            terminal=process.paths.terminal,
        )
        return {}
    process.stdio = stdio = Stdio(files)
    return await stdio.connect(lambda: sandbox.transport.connect(STREAM_PORT))
