"""virtiofsd, which serves the directory that a machine shares with its guest."""

from __future__ import annotations

import contextlib
import os

import anyio

from kata_configuration.models.dragonball import Dragonball
from kata_hypervisor import virtiofsd
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.dragonball.host_files import daemon_command
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem
from kata_hypervisor.host import Child, ExitStatus, Host
from kata_hypervisor.output_tail import Follower, follow

NAME = "virtiofsd"
STDERR = 2


class FileServer:
    """The process, and what it says. ours: closes what is opened here, once the process has ended."""

    def __init__(self, table: Dragonball, host: Host, ours: contextlib.AsyncExitStack) -> None:
        self._table = table
        self._host = host
        self._ours = ours
        self._stderr: Follower | None = None
        self.child: Child | None = None

    async def start(self, spec: VmSpec, shared: SharedDirectory) -> FileSystem:
        """Start it; return the device that it serves.

        Raises:
            HostUnfitError, LaunchError: there is none, or it cannot be started.
        """
        argv = daemon_command(self._table, shared.path)
        listener, connection = virtiofsd.rendezvous(spec.directory)
        try:
            with listener:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                try:
                    self._stderr = await follow(os.fdopen(reader, "rb", buffering=0))
                    self._ours.push_async_callback(self._stderr.aclose)
                    fds = {virtiofsd.LISTENER: listener.fileno(), STDERR: writer}
                    self.child = await self._host.spawn(NAME, argv, fds=fds)
                finally:
                    os.close(writer)
            return FileSystem(connection, shared.tag, self._table.virtio_fs_queue_size)
        except BaseException:
            connection.close()
            raise

    async def end(self, patience: float) -> None:
        """Kill it, and hear its last words, for some seconds at most; idempotent."""
        if self.child is not None:
            await self.child.kill()
            await self.child.wait()
        if self._stderr is not None:
            with anyio.move_on_after(patience):
                await self._stderr.ended.wait()

    def describe(self, status: ExitStatus) -> str:
        """How it ended, and why by its own words."""
        last = self._stderr.tail.last_line if self._stderr is not None else ""
        return f"{status}: {last}" if last else f"{status}"

    @property
    def words(self) -> str:
        """The last lines of its standard error."""
        return self._stderr.tail.text if self._stderr is not None else ""
