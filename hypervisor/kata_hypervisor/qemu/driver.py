"""The QEMU driver: one virtual machine as two processes, qemu and virtiofsd, and their end.

Prepare: host fit? -> virtiofsd -> qemu, waiting -> monitor -> proof of confinement.
Run:     the virtual CPUs run.
End:     one task watches both processes from the start. When either ends, it ends the other, closes all that
         is ours and keeps the `VmExit`. All else looks at that task, never at a silent socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio

from kata_agent.transport import GuestTransport
from kata_agent.transports import SerialTransport, VsockTransport
from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor import vhost_vsock, virtiofsd
from kata_hypervisor.contract import (
    Capabilities,
    Hypervisor,
    SharedDirectory,
    VmExit,
    VmmProcess,
    VmSpec,
    check_supported,
)
from kata_hypervisor.errors import HypervisorError, LaunchError, MachineFailedError
from kata_hypervisor.host import Child, ExitStatus, Host
from kata_hypervisor.output_tail import Follower, Tail, follow
from kata_hypervisor.qemu import command
from kata_hypervisor.qemu.diagnosis import Ending
from kata_hypervisor.qemu.preflight import check_host
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.qemu.qmp_control import QmpControlled
from kata_hypervisor.seccomp.confinement import inherited_filters

__all__ = ["Qemu"]

QEMU, VIRTIOFSD = "qemu", "virtiofsd"

MOMENT = 0.1
"""Seconds within which two ends belong together, and in which last words arrive."""

DYING = 10.0
"""Seconds that the kernel may take to end a QEMU whose descriptors it has closed."""

T = TypeVar("T")


class Qemu(QmpControlled, Hypervisor):
    """One virtual machine in QEMU.

    table: [hypervisor.qemu] of the configuration. host: starts the processes. start_budget, stop_budget:
    seconds that QEMU gets until its virtual CPUs run, and to end by itself.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float = 30.0, stop_budget: float = 1.0
    ) -> None:
        self._table = table
        self._host = host
        self._start_budget = start_budget
        self._stop_budget = stop_budget
        self._inherited = inherited_filters()
        self._children: dict[str, Child] = {}
        self._followers: dict[str, Follower] = {}
        self._ours = contextlib.AsyncExitStack()
        self._transport: GuestTransport | None = None
        self._warnings: tuple[str, ...] = ()
        self._spawning: asyncio.Task[QmpClient] | None = None

    capabilities = Capabilities(file_sharing=True, pause=True)

    async def prepare(self, spec: VmSpec) -> None:
        """See the contract."""
        check_supported("qemu", self.capabilities, spec)
        if self._spawning is not None or self._requested:
            raise LaunchError(f"cannot start the virtual machine of {spec.sandbox_id}: it was used before")
        # A task of its own: a child that is started while its caller is cancelled must be known, to be ended.
        self._spawning = asyncio.create_task(self._spawn_all(spec), name="virtual machine's processes")
        try:
            await asyncio.wait({self._spawning})
            await self._connect(self._spawning.result())
        except BaseException:
            await self.stop()
            raise

    async def run(self) -> None:
        """See the contract."""
        if self._end is None or self._monitor is None or self._running:
            raise LaunchError("cannot run the virtual machine: it is not prepared, or runs already")
        try:
            deadline = anyio.current_time() + self._start_budget
            await self._attempt("starting the virtual CPUs", deadline, self._monitor.execute("cont"))
        except BaseException:
            await self.stop()
            raise
        self._running = True

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        return frozenset({"serial"} if isinstance(self._transport, SerialTransport) else ())

    async def _spawn_all(self, spec: VmSpec) -> QmpClient:
        """Start both processes and the task that watches them; return QEMU's monitor, not connected yet."""
        self._warnings = check_host(self._table, spec)
        with contextlib.ExitStack() as theirs:
            fds: dict[int, int] = {}
            if spec.shared is not None:
                fds[command.FILESYSTEM] = await self._start_virtiofsd(spec.directory, spec.shared, theirs)
            monitor = await self._start_qemu(spec, fds, theirs)
        self._end = asyncio.create_task(self._supervise(), name="virtual machine's end")
        return monitor

    async def _connect(self, monitor: QmpClient) -> None:
        """Reach QEMU, whose virtual CPUs wait, and prove its confinement."""
        if self._requested:
            raise LaunchError("the virtual machine was stopped while it started")
        deadline = anyio.current_time() + self._start_budget
        await self._attempt("waiting for qemu's monitor", deadline, monitor.connect())
        await self._attempt("reading qemu's confinement", deadline, self._verify_confinement())

    async def _start_virtiofsd(
        self, directory: Path, shared: SharedDirectory, theirs: contextlib.ExitStack
    ) -> int:
        """Start virtiofsd; return the descriptor of a connection to it, for QEMU."""
        table = self._table
        argv = virtiofsd.command_line(
            table.virtio_fs_daemon,
            virtiofsd.dialect_of(table.virtio_fs_daemon),
            shared.path,
            table.virtio_fs_cache,
            table.virtio_fs_extra_args,
        )
        listener, connection = virtiofsd.rendezvous(directory)
        theirs.callback(listener.close)
        theirs.callback(connection.close)
        await self._spawn(VIRTIOFSD, argv, {virtiofsd.LISTENER: listener.fileno()}, theirs)
        return connection.fileno()

    async def _start_qemu(self, spec: VmSpec, fds: dict[int, int], theirs: contextlib.ExitStack) -> QmpClient:
        """Start QEMU with its channels; return its monitor, not connected yet."""
        monitor = self._monitor = QmpClient(self._channel(command.MONITOR, fds, theirs))
        self._ours.push_async_callback(monitor.aclose)
        await self._follow("console", self._channel(command.CONSOLE, fds, theirs))
        cid = await self._prepare_transport(fds, theirs)
        partitioned = spec.image is not None and command.has_partition_table(spec.image)
        devices = command.Devices(vsock_cid=cid, image_partitioned=partitioned)
        await self._spawn(QEMU, command.command_line(self._table, spec, devices), fds, theirs)
        return monitor

    async def _prepare_transport(self, fds: dict[int, int], theirs: contextlib.ExitStack) -> int | None:
        """Choose the way to the agent; return the guest's vsock id where the host has vhost-vsock."""
        vsock = vhost_vsock.open_device()
        if vsock is None:
            transport: GuestTransport = SerialTransport(self._channel(command.AGENT, fds, theirs))
            cid = None
        else:
            fds[command.AGENT], cid = vsock
            theirs.callback(os.close, fds[command.AGENT])
            await self._host.register_guest(cid)
            transport = VsockTransport(self._host.connect_guest, f"guest {cid}")
        self._ours.push_async_callback(transport.aclose)
        self._transport = transport
        return cid

    def _channel(self, number: int, fds: dict[int, int], theirs: contextlib.ExitStack) -> socket.socket:
        """Make a pair of sockets: one end is descriptor `number` in the child, the other is returned."""
        our_end, their_end = socket.socketpair()
        theirs.callback(their_end.close)
        self._ours.callback(our_end.close)
        fds[number] = their_end.fileno()
        return our_end

    async def _follow(self, heading: str, stream: object) -> None:
        debug = logging.getLogger(f"{__name__}.{heading.replace(' ', '_')}").debug
        follower = await follow(stream, debug if self._table.enable_debug else None)
        self._followers[heading] = follower
        self._ours.push_async_callback(follower.aclose)

    async def _spawn(
        self, name: str, argv: Sequence[str], fds: Mapping[int, int], theirs: contextlib.ExitStack
    ) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs.callback(os.close, writer)
        await self._follow(f"{name} stderr", os.fdopen(reader, "rb", buffering=0))
        self._children[name] = await self._host.spawn(name, argv, fds={**fds, command.STDERR: writer})

    def _failure(self, message: str) -> MachineFailedError:
        return MachineFailedError(f"qemu failed to start: {message}", self._diagnostics())

    async def _supervise(self) -> VmExit:
        """Wait for the first end, then end everything."""
        waits = {name: asyncio.ensure_future(child.wait()) for name, child in self._children.items()}
        try:
            await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
            requested = self._requested
            await asyncio.wait(waits.values(), timeout=MOMENT)
            await self._let_qemu_end(waits[QEMU])
            ended = {name: task.result() for name, task in waits.items() if task.done()}
            await self._kill()
            await asyncio.wait(waits.values())
            await self._drain_outputs()
            return self._conclude(_first_failure(ended), ended, requested)
        finally:
            await self._ours.aclose()

    async def _let_qemu_end(self, end: asyncio.Future[ExitStatus]) -> None:
        """A dying QEMU hangs up on virtiofsd and on us long before the kernel has torn down its machine."""
        assert self._monitor is not None
        if not end.done() and self._running and self._monitor.ended:
            await asyncio.wait({end}, timeout=DYING)

    def _conclude(self, process: str, ended: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        ending = Ending(
            process=process,
            status=ended[process],
            stderr=self._tail(f"{process} stderr"),
            console=self._tail("console"),
            shutdown=self._monitor.shutdown_reason if self._monitor else None,
            running=self._running,
        )
        reason = ending.describe(self._table)
        return VmExit(reason, process, ended[process], requested, self._diagnostics())

    async def _drain_outputs(self) -> None:
        """Read what the dead have written; a grandchild that holds a pipe open does not keep us."""
        with anyio.move_on_after(MOMENT):
            for follower in self._followers.values():
                await follower.ended.wait()
            if self._monitor is not None:
                await self._monitor.wait_ended()

    async def _stop(self) -> None:
        if self._spawning is not None:
            await asyncio.wait({self._spawning})
        if self._end is None or self._monitor is None:  # QEMU was never started
            await self._kill()
            for child in self._children.values():
                await child.wait()
            await self._ours.aclose()
            return
        if not self._end.done():
            # Ask QEMU to end, for a short while; then let the kernel.
            with anyio.move_on_after(self._stop_budget), contextlib.suppress(QmpError):
                await self._monitor.execute("quit")
                await asyncio.wait({self._end})
            await self._kill()
        await asyncio.wait({self._end})

    async def _kill(self) -> None:
        for child in self._children.values():
            await child.kill()

    @property
    def _qemu(self) -> Child:
        return self._children[QEMU]

    @property
    def transport(self) -> GuestTransport:
        """See the contract."""
        if self._transport is None:
            raise HypervisorError("there is no way to the guest: the virtual machine was not started")
        return self._transport

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        roles = ((QEMU, "vmm"), (VIRTIOFSD, "virtiofsd"))
        return tuple(VmmProcess(role, self._children[name]) for name, role in roles if name in self._children)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return self._warnings

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._tail("console").text

    def _tail(self, heading: str) -> Tail:
        follower = self._followers.get(heading)
        return follower.tail if follower else Tail()

    def _diagnostics(self) -> dict[str, str]:
        texts = {heading: follower.tail.text for heading, follower in self._followers.items()}
        return {heading: text for heading, text in texts.items() if text}


def _first_failure(ended: Mapping[str, ExitStatus]) -> str:
    """Of the processes that ended together, name the one whose end explains the other's.

    virtiofsd ends with status 0 when QEMU is gone; QEMU fails when virtiofsd does.
    """
    daemon, vmm = ended.get(VIRTIOFSD), ended.get(QEMU)
    if vmm is None:
        return VIRTIOFSD
    if daemon is None or daemon.code == 0 or vmm.signal is not None:
        return QEMU
    return VIRTIOFSD
