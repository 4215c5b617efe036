"""The QEMU driver: one virtual machine as two processes, qemu and virtiofsd.

Prepare: host checks -> virtiofsd -> qemu, waiting -> monitor -> confinement verified.
Run:     the virtual CPUs run.
End:     see `ProcessLifecycle`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kata_agent.transport import GuestTransport
from kata_agent.transports import SerialTransport, VsockTransport
from kata_hypervisor import vhost_vsock, virtiofsd
from kata_hypervisor.contract import (
    Capabilities,
    Disk,
    Hypervisor,
    MachineSize,
    SharedDirectory,
    VmSpec,
    check_supported,
)
from kata_hypervisor.errors import HypervisorError, LaunchError
from kata_hypervisor.host import Host
from kata_hypervisor.kernel_line import is_partitioned
from kata_hypervisor.lifecycle import EXIT_GRACE
from kata_hypervisor.privileges import VHOST_NET
from kata_hypervisor.qemu import command, plugging
from kata_hypervisor.qemu.growth import Growth
from kata_hypervisor.qemu.plugging import LaterDisks
from kata_hypervisor.qemu.preflight import check_host
from kata_hypervisor.qemu.qmp import QmpError
from kata_hypervisor.qemu.qmp_control import CONSOLE, QmpControlled

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

__all__ = ["Qemu"]


class Qemu(QmpControlled, Hypervisor):
    """One virtual machine in QEMU; see `QmpControlled`."""

    capabilities = Capabilities(
        file_sharing=True, device_hotplug=True, taps=True, tap_descriptors=True, pause=True, resize=True
    )

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float | None = None, stop_budget: float = 1.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._transport: GuestTransport | None = None
        self._growth: Growth | None = None
        self._later_disks: LaterDisks | None = None
        self._file_server = virtiofsd.FileServer(table, self._children, host)

    async def prepare(self, spec: VmSpec) -> None:
        """See the contract."""
        check_supported(self.vmm, self.capabilities, spec)
        what = f"virtual machine of {spec.sandbox_id}"
        await self._launch(what, lambda: self._spawn(spec), self._connect_both)

    async def _connect_both(self) -> None:
        """Reach QEMU, and verify the confinement of both processes."""
        await self._connect()
        deadline = anyio.current_time() + self._start_budget + EXIT_GRACE
        verification = self._file_server.verify(self._start_budget)
        self._warnings += await self._attempt("reading virtiofsd's confinement", deadline, verification)

    async def verify_confinement(self) -> None:
        """See the contract."""
        await super().verify_confinement()
        try:
            await self._file_server.check()
        except ProcessLookupError as error:
            raise HypervisorError("cannot verify the confinement: virtiofsd has exited") from error

    async def run(self) -> None:
        """See the contract."""
        if self._end is None or self._monitor is None or self._running:
            raise LaunchError("cannot run the virtual machine: it is not prepared, or runs already")
        try:
            await self._start_vcpus()
        except BaseException:
            await self.stop()
            raise
        self._running = True

    async def resize(self, size: MachineSize) -> MachineSize:
        """See the contract."""
        if self._growth is None or self._end is None or not self._running:
            raise HypervisorError("cannot resize the virtual machine: it is not running")
        try:
            reached = await self._growth.resize(size)
        except QmpError as error:
            raise self._refusal("resize the virtual machine", error) from error
        await self._verify_changed()
        return reached

    async def add_disk(self, disk: Disk) -> None:
        """See the contract."""
        await self._disks.add(disk)
        await self._verify_changed()

    async def remove_disk(self, name: str) -> None:
        """See the contract."""
        await self._disks.remove(name)

    @property
    def _disks(self) -> LaterDisks:
        if self._later_disks is None:
            raise HypervisorError("the virtual machine has no disks: it was not started")
        return self._later_disks

    async def _spawn(self, spec: VmSpec) -> None:
        """Start both processes."""
        self._warnings += check_host(self._table, spec)
        with contextlib.ExitStack() as theirs:
            fds: dict[int, int] = {}
            if spec.shared is not None:
                fds[command.FILESYSTEM] = await self._start_virtiofsd(spec.directory, spec.shared, theirs)
            fds[command.CONSOLE] = await self._children.connection(CONSOLE, theirs)
            cid = await self._prepare_transport(fds, theirs)
            for number, fd in enumerate(fd for tap in spec.taps for fd in tap.fds):
                fds[command.TAPS + number] = fd
            devices = command.Devices(
                vsock_cid=cid,
                image_partitioned=is_partitioned(spec.image),
                vhost_net=VHOST_NET.exists(),
            )
            argv = command.command_line(self._table, spec, devices)
            later, grows = spec.spare_disks, spec.most is not None
            argv += plugging.ports(self._table, later)
            shown = command.shown(self._table, spec, devices)
            await self._spawn_qemu(argv, fds, theirs, shown, block=later > 0, grows=grows)
            assert self._monitor is not None
            self._growth = Growth(self._table, self._monitor, spec, self._start_budget)
            self._later_disks = LaterDisks(self._table, later, self._host, self._monitor, self._command)

    async def _start_virtiofsd(
        self, directory: Path, shared: SharedDirectory, theirs: contextlib.ExitStack
    ) -> int:
        """Start virtiofsd; return the descriptor of a connection to it, for QEMU."""
        listener, connection = virtiofsd.rendezvous(directory)
        theirs.callback(listener.close)
        theirs.callback(connection.close)
        await self._file_server.start(shared.path, listener)
        return connection.fileno()

    async def _prepare_transport(self, fds: dict[int, int], theirs: contextlib.ExitStack) -> int | None:
        """Choose the way to the agent; return the guest's vsock id where the host has vhost-vsock."""
        vsock = vhost_vsock.open_device()
        if vsock is None:
            ours, fds[command.AGENT] = self._children.channel(theirs)
            transport: GuestTransport = SerialTransport(ours)
            cid = None
        else:
            fds[command.AGENT], cid = vsock
            theirs.callback(os.close, fds[command.AGENT])
            await self._host.register_guest(cid)
            transport = VsockTransport(self._host.connect_guest, f"guest {cid}")
        self._children.ours.push_async_callback(transport.aclose)
        self._transport = transport
        return cid

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        return frozenset({"serial"} if isinstance(self._transport, SerialTransport) else ())

    @property
    def transport(self) -> GuestTransport:
        """See the contract."""
        if self._transport is None:
            raise HypervisorError("there is no way to the guest: the virtual machine was not started")
        return self._transport
