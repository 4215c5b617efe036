"""A unikernel as a sandbox's guest: it is the one process of the one container, and there is no agent.

What can be done with it is asked of its VMM, and everything else is refused with a sentence.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import anyio

from kata_hypervisor.contract import Disk, UnikernelVmm, VmExit
from kata_runtime.container.guest import Guest
from kata_runtime.errors import UnsupportedError
from kata_runtime.stdio.pumps import Stdio

if TYPE_CHECKING:
    from kata_agent.protos import agent_pb2
    from kata_runtime.container.bundle import JsonObject
    from kata_runtime.container.guest_spec import GuestSource
    from kata_runtime.container.process import Container, Process
    from kata_runtime.stdio.files import StdioFiles
    from kata_runtime.unikernel.streams import UnikernelStreams

_log = logging.getLogger(__name__)

# Signals that a process ignores unless it has asked for them.
IGNORED = (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT)


class UnikernelGuest(Guest):
    """A unikernel in a machine that is prepared, and runs once its container is started."""

    shares_files = False
    takes_disks = False
    takes_devices = False

    def __init__(self, container: Container, machine: UnikernelVmm, streams: UnikernelStreams) -> None:
        self._container = container
        self._machine = machine
        self._streams = streams
        self._signal: int | None = None

    # -- its end -------------------------------------------------------------------------------------------

    async def failure(self, on_oom: Callable[[str], None]) -> str:
        """See Guest: its end is the exit of its container, which `wait_process` reports."""
        while True:
            await anyio.sleep_forever()

    async def stop(self) -> None:
        """See Guest."""
        self._streams.close()
        await self._machine.stop()

    # -- its container -------------------------------------------------------------------------------------

    def check_further(self, container: Container) -> None:
        """See Guest: there is one container."""
        raise _unsupported(f"run container {container.id} beside it")

    async def create_container(
        self, container: Container, sources: Mapping[int, GuestSource], files: StdioFiles
    ) -> Stdio:
        """See Guest: it was made before the seal."""
        return Stdio(files, self._streams.take())

    async def start_container(self, container_id: str) -> None:
        """See Guest."""
        await self._machine.run()

    async def pause_container(self, container_id: str) -> None:
        """See Guest."""
        await self._machine.pause()

    async def resume_container(self, container_id: str) -> None:
        """See Guest."""
        await self._machine.resume()

    async def remove_container(self, container_id: str) -> None:
        """See Guest."""
        await self._machine.stop()

    async def forget_removed_shares(self) -> None:
        """See Guest: it has none."""

    async def update_container(self, container: Container, limits: JsonObject) -> None:
        """See Guest: refused."""
        raise _unsupported("change its limits")

    async def container_stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """See Guest: refused."""
        raise _unsupported("count what it uses")

    # -- its process ---------------------------------------------------------------------------------------

    async def exec_process(self, process: Process, files: StdioFiles) -> Stdio:
        """See Guest: refused."""
        files.close()
        raise _unsupported("run another process in it")

    async def wait_process(self, process: Process) -> int:
        """See Guest. An end that is not the unikernel's own is explained on its output."""
        end = await self._machine.wait()
        _log.info("container %s: %s", self._container.id, end.reason)
        status = self._status(end)
        if self._signal is None and _needs_notice(end):
            self._streams.write_notice(f"kata: {end.reason}\n")
        self._streams.close_output()
        return status

    def _status(self, end: VmExit) -> int:
        number = self._signal if self._signal is not None else end.status.signal
        return end.status.code or 0 if number is None else 128 + number

    async def signal_process(self, process: Process, number: int, *, everyone: bool) -> None:
        """See Guest: it has no handlers, so what a process does not ignore ends it."""
        if number in IGNORED:
            return
        if self._signal is None:
            self._signal = number
        await self._machine.stop()

    async def resize_terminal(self, process: Process, columns: int, rows: int) -> None:
        """See Guest: refused."""
        raise _unsupported("set the size of its terminal")

    # -- disks ---------------------------------------------------------------------------------------------

    async def add_disk(self, disk: Disk) -> str:
        """See Guest: refused."""
        raise _unsupported("plug in a disk")

    async def remove_disk(self, name: str) -> None:
        """See Guest: refused."""
        raise _unsupported("take out a disk")

    # -- its network ---------------------------------------------------------------------------------------

    async def list_interfaces(self) -> agent_pb2.Interfaces:
        """See Guest: refused."""
        raise _unsupported("list its interfaces")

    async def list_routes(self) -> agent_pb2.Routes:
        """See Guest: refused."""
        raise _unsupported("list its routes")


def _needs_notice(end: VmExit) -> bool:
    """Whether the end was not the unikernel's own: it was killed, or its VMM has complained."""
    complained = any(heading.endswith("stderr") for heading in end.diagnostics)
    return end.status.signal is not None or (complained and end.status.code != 0)


def _unsupported(action: str) -> UnsupportedError:
    return UnsupportedError(f"cannot {action}: the container is a unikernel, which has no agent")
