"""Devices on files of the host, which are opened before the process is sealed."""

from __future__ import annotations

import os
from pathlib import Path

from kata_configuration.models.dragonball import Dragonball
from kata_hypervisor import virtiofsd
from kata_hypervisor.contract import Disk, Tap
from kata_hypervisor.dragonball.virtio.block import Block
from kata_hypervisor.dragonball.virtio.entropy import Entropy
from kata_hypervisor.dragonball.virtio.network import Network
from kata_hypervisor.errors import HostUnfitError, LaunchError, NotSupportedError

ENTROPY = "/dev/urandom"
VHOST_NET = "/dev/vhost-net"


def open_disk(path: Path, identity: str, *, read_only: bool) -> Block:
    """A disk of the guest on a file or block device. identity: its serial number, cut to 20 bytes.

    Raises:
        LaunchError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"cannot open the guest's {identity} {path}: {error.strerror}") from error
    size = os.lseek(descriptor, 0, os.SEEK_END)
    return Block(descriptor, size, read_only=read_only, identity=identity.encode())


def blank_disk(disk: Disk) -> Block:
    """The place of a disk in a machine that is made to be saved: each copy has its own disk there."""
    return Block(-1, 0, read_only=disk.read_only, identity=disk.id.encode())


def open_network(tap: Tap) -> Network:
    """A network device of the guest on a tap's only queue.

    Raises:
        NotSupportedError: the tap is not given as one descriptor.
        HostUnfitError: this host has no vhost-net.
    """
    if len(tap.fds) != 1:
        raise NotSupportedError(
            f"cannot use the tap {tap.name} with {len(tap.fds)} queues that are open: only one"
        )
    try:
        vhost_net = os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostUnfitError(f"cannot open {VHOST_NET}: {error.strerror}; load vhost_net") from error
    return Network(os.dup(tap.fds[0]), vhost_net, bytes.fromhex(tap.mac.replace(":", "")))


def open_entropy() -> Entropy:
    """The host's random numbers.

    Raises:
        HostUnfitError: it has none.
    """
    try:
        return Entropy(os.open(ENTROPY, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise HostUnfitError(f"cannot open {ENTROPY} for the guest: {error.strerror}") from error


def daemon_command(table: Dragonball, directory: Path) -> list[str]:
    """The command line of the virtiofsd that serves a directory. Raises HostUnfitError."""
    return virtiofsd.command_line(
        table.virtio_fs_daemon,
        virtiofsd.dialect_of(table.virtio_fs_daemon),
        directory,
        table.virtio_fs_cache,
        table.virtio_fs_extra_args,
    )
