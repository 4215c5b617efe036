"""virtiofsd, which serves the directory that a machine shares with its guest."""

from __future__ import annotations

import math
import socket
import struct

from kata_hypervisor import virtiofsd
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem

STDERR = f"{virtiofsd.NAME} stderr"
"""The heading under which `Children` keeps what it writes."""


async def start(
    server: virtiofsd.FileServer, spec: VmSpec, shared: SharedDirectory, queue_size: int, patience: float
) -> FileSystem:
    """Start it; return the device that it serves.

    patience: seconds that it gets for each answer.

    Raises:
        HostUnfitError, LaunchError: there is none, or it cannot be started.
    """
    listener, connection = virtiofsd.rendezvous(spec.directory)
    try:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", math.ceil(patience), 0))
        with listener:
            await server.start(shared.path, listener)
        return FileSystem(connection, shared.tag, queue_size)
    except BaseException:
        connection.close()
        raise
