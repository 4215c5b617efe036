"""A `Host` that starts real processes as children of the test, in place of the runtime's broker."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata_agent.transports import Dial, dial_unix, dial_vsock
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp import effectiveness
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement, read_threads
from kata_runtime import syscalls
from kata_runtime.broker import spawn
from kata_runtime.broker.child_filter import ChildFilterSupervisor
from kata_runtime.broker.errors import RequestFailedError

MS_BIND = 0x1000
FIRST_COPY = 100
"""Descriptors are copied up here first, so that setting one in the child cannot overwrite another."""


class LocalChild:
    """A child of the test, reaped as soon as its pidfd says that it ended."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.exited: ExitStatus | None = None
        self.violation = ""
        self.run_directory: Path | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.exited = ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)
        if self.run_directory is not None:
            shutil.rmtree(self.run_directory)
        self._ended.set()

    async def wait(self) -> ExitStatus:
        """See Child."""
        await self._ended.wait()
        assert self.exited is not None
        return self.exited

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """See Child."""
        if self.exited is None:
            signal.pidfd_send_signal(self._pidfd, number)


class LocalHost:
    """Starts children with posix_spawn.

    children: all of them, by name. privileges: what each would have been shown, by name. user: what a jailer
    is told.
    """

    user = 1879048192
    patience = 60.0

    def __init__(self) -> None:
        self.children: dict[str, LocalChild] = {}
        self.privileges: dict[str, Privileges | None] = {}
        self._run_directory: Path | None = None
        self.dial: Dial
        # Of disks that come later, as the driver told when it handed its monitor over.
        self.limits: Mapping[str, Any] | None = None
        self._views: list[Path] = []
        self._watches: dict[int, ChildFilterSupervisor] = {}

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """See Host; needs root. Its files are removed with `aclose`."""
        root.mkdir(parents=True)
        for name, source in files.items():
            (root / name).touch()
            syscalls.mount(str(source), str(root / name), flags=MS_BIND)
            self._views.append(root / name)

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None = None,
        gate: int | None = None,
        seccomp: ChildFilter | None = None,
        privileges: Privileges | None = None,
    ) -> LocalChild:
        """See Host. With a gate or a filter, the broker's own code forks."""
        self.privileges[name] = privileges
        directory = privileges.run_directory if privileges is not None else None
        if directory is not None:
            directory.mkdir(exist_ok=True)
        try:
            child = self._start(name, argv, fds, environment, gate, seccomp)
        except LaunchError:
            for made in filter(None, (self._run_directory, directory)):
                shutil.rmtree(made, ignore_errors=True)
            raise
        child.run_directory = directory
        return child

    def _start(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None,
        gate: int | None,
        seccomp: ChildFilter | None,
    ) -> LocalChild:
        if gate is not None or seccomp is not None:
            return self._fork(name, argv, fds, environment, gate, seccomp)
        copies = {
            target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, FIRST_COPY) for target, source in fds.items()
        }
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)
        ]
        actions += [(os.POSIX_SPAWN_DUP2, copy, target) for target, copy in copies.items()]
        try:
            pid = os.posix_spawn(argv[0], list(argv), dict(environment or {}), file_actions=actions)
        except OSError as error:
            raise LaunchError(f"cannot start {name}: {argv[0]}: {error.strerror}") from error
        finally:
            for copy in copies.values():
                os.close(copy)
        self.children[name] = LocalChild(name, pid)
        return self.children[name]

    def _fork(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None,
        gate: int | None,
        seccomp: ChildFilter | None,
    ) -> LocalChild:
        supervised = seccomp is not None and bool(seccomp.loading)
        seen = ChildFilterSupervisor(name, seccomp.to_json()) if seccomp is not None and supervised else None
        code = seccomp.code if seccomp is not None else b""
        try:
            pid = spawn.spawn(
                name, argv, fds, environment, lambda pid, start: None, gate=gate, code=code, supervisor=seen
            )
        except RequestFailedError as error:
            raise LaunchError(str(error)) from None
        child = self.children[name] = LocalChild(name, pid)
        if seen is not None:
            asyncio.get_running_loop().add_reader(seen.listener, self._judge, child, seen)
            self._watches[pid] = seen
        return child

    def _judge(self, child: LocalChild, seen: ChildFilterSupervisor) -> None:
        hung_up = select.poll()
        hung_up.register(seen.listener, select.POLLIN)
        if any(not event & select.POLLIN for _, event in hung_up.poll(0)):
            self._leave(seen)
        elif (sentence := seen.answer()) is not None:
            child.violation = sentence
            os.kill(child.pid, signal.SIGKILL)

    def _leave(self, seen: ChildFilterSupervisor) -> None:
        if seen.listener >= 0:
            asyncio.get_running_loop().remove_reader(seen.listener)
            seen.close()

    async def listen_for_vmm(self, path: Path) -> socket.socket:
        """See Host."""
        self._run_directory = path.parent
        path.parent.mkdir(exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen(1)
        return listener

    async def connect_vmm(self, path: Path) -> socket.socket:
        """See Host."""
        connection = socket.socket(socket.AF_UNIX)
        if code := connection.connect_ex(os.fspath(path)):
            connection.close()
            raise OSError(code, os.strerror(code), os.fspath(path))
        return connection

    async def show_disk(self, name: str, path: Path, *, write: bool) -> Path:
        """See Host. Children see all of the host."""
        return path

    async def give_device(self, path: Path, *, write: bool) -> None:
        """See Host. Nobody stands between, so nobody sends it along."""
        raise NotImplementedError(f"there is no broker that sends {path}")

    async def hide_disk(self, name: str) -> None:
        """See Host."""

    async def register_guest(self, address: int | str) -> None:
        """See Host."""
        self.dial = dial_vsock(address) if isinstance(address, int) else dial_unix(address)

    async def hold_monitor(
        self,
        driver: str,
        monitor: socket.socket,
        *,
        saved_to: Path | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> socket.socket:
        """See Host. Nobody stands between."""
        self.limits = limits
        return monitor

    async def connect_guest(self, port: int) -> socket.socket:
        """See Host."""
        return await self.dial(port)

    async def open_disk(self, path: Path, *, write: bool) -> tuple[int, int]:
        """See Host."""
        descriptor = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        return descriptor, os.lseek(descriptor, 0, os.SEEK_END)

    async def confinement(self, child: Child) -> list[ThreadConfinement]:
        """See Host."""
        return read_threads(child.pid)

    async def filters_effective(self, child: Child, tid: int, beyond: int = 0) -> bool:
        """See Host."""
        return effectiveness.are_effective(tid, beyond)

    async def end_loading(self, child: Child) -> None:
        """See Host."""
        if child.exited is not None:
            raise ProcessLookupError(child.pid)
        self._watches[child.pid].end_loading()

    async def aclose(self) -> None:
        """End what a failed test has left, and take the jail apart."""
        for child in self.children.values():
            await child.kill()
            await child.wait()
        for seen in self._watches.values():
            self._leave(seen)
        if self._run_directory is not None:
            shutil.rmtree(self._run_directory, ignore_errors=True)
        for view in self._views:
            syscalls.unmount(str(view))
        if self._views:
            shutil.rmtree(self._views[0].parents[3])
