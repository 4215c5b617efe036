"""The QEMU driver: one virtual machine as two processes, qemu and virtiofsd.

Prepare: host checks -> virtiofsd -> qemu, waiting -> monitor -> confinement verified.
Run:     the virtual CPUs run.
End:     see `ProcessLifecycle`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kata_agent.transport import GuestTransport
from kata_agent.transports import SerialTransport, VsockTransport
from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor import vhost_vsock, virtiofsd
from kata_hypervisor.contract import Capabilities, Hypervisor, SharedDirectory, VmSpec, check_supported
from kata_hypervisor.errors import HypervisorError, LaunchError
from kata_hypervisor.host import Host
from kata_hypervisor.lifecycle import VIRTIOFSD
from kata_hypervisor.qemu import command
from kata_hypervisor.qemu.preflight import check_host
from kata_hypervisor.qemu.qmp_control import CONSOLE, QmpControlled

__all__ = ["Qemu"]


class Qemu(QmpControlled, Hypervisor):
    """One virtual machine in QEMU; see `QmpControlled`."""

    capabilities = Capabilities(file_sharing=True, taps=True, tap_descriptors=True, pause=True)

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float = 30.0, stop_budget: float = 1.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._transport: GuestTransport | None = None

    async def prepare(self, spec: VmSpec) -> None:
        """See the contract."""
        check_supported(self.vmm, self.capabilities, spec)
        what = f"virtual machine of {spec.sandbox_id}"
        await self._launch(what, lambda: self._spawn(spec), self._connect)

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

    async def _spawn(self, spec: VmSpec) -> None:
        """Start both processes."""
        self._warnings += check_host(self._table, spec)
        with contextlib.ExitStack() as theirs:
            fds: dict[int, int] = {}
            if spec.shared is not None:
                fds[command.FILESYSTEM] = await self._start_virtiofsd(spec.directory, spec.shared, theirs)
            fds[command.CONSOLE] = await self._children.connection(CONSOLE, theirs)
            cid = await self._prepare_transport(fds, theirs)
            partitioned = spec.image is not None and command.has_partition_table(spec.image)
            for number, fd in enumerate(fd for tap in spec.taps for fd in tap.fds):
                fds[command.TAPS + number] = fd
            devices = command.Devices(vsock_cid=cid, image_partitioned=partitioned)
            argv = command.command_line(self._table, spec, devices)
            await self._spawn_qemu(argv, fds, theirs, command.shown(self._table, spec))

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
        await self._children.spawn(VIRTIOFSD, argv, {virtiofsd.LISTENER: listener.fileno()})
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
