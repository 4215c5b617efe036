"""virtiofsd, which serves the directory that a machine shares with its guest."""

from __future__ import annotations

from kata_configuration.models.dragonball import Dragonball
from kata_hypervisor import virtiofsd
from kata_hypervisor.children import Children
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem

NAME = "virtiofsd"
STDERR = f"{NAME} stderr"
"""The heading under which `Children` keeps what it writes."""


async def start(table: Dragonball, children: Children, spec: VmSpec, shared: SharedDirectory) -> FileSystem:
    """Start it, as one of the machine's children; return the device that it serves.

    Raises:
        HostUnfitError, LaunchError: there is none, or it cannot be started.
    """
    daemon = table.virtio_fs_daemon
    argv = virtiofsd.command_line(
        daemon, virtiofsd.dialect_of(daemon), shared.path, table.virtio_fs_cache, table.virtio_fs_extra_args
    )
    listener, connection = virtiofsd.rendezvous(spec.directory)
    try:
        with listener:
            await children.spawn(NAME, argv, {virtiofsd.LISTENER: listener.fileno()})
        return FileSystem(connection, shared.tag, table.virtio_fs_queue_size)
    except BaseException:
        connection.close()
        raise
