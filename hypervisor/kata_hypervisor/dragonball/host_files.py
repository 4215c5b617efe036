"""Devices on files of the host, which are opened before the process is sealed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kata_hypervisor import libc
from kata_hypervisor.contract import Disk, Tap, VmSpec
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.entropy import Entropy
from kata_hypervisor.dragonball.virtio.network import NO_TAP, Network, set_up_tap
from kata_hypervisor.errors import HostUnfitError, LaunchError, NotSupportedError
from kata_hypervisor.privileges import VHOST_NET

ENTROPY = "/dev/urandom"


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
    return Block(Medium(descriptor, size, read_only=read_only, identity=identity.encode()))


def blank_disk(disk: Disk) -> Block:
    """The place of a disk in a machine that is made to be saved: each copy has its own disk there."""
    return Block(Medium(-1, 0, read_only=disk.read_only, identity=disk.id.encode()))


def open_network(tap: Tap) -> Network:
    """A network device of the guest on a tap's only queue.

    Raises:
        NotSupportedError: the tap is not given as one descriptor.
        HostUnfitError: this host has no vhost-net, or the descriptor is of no tap.
    """
    queue, mac = tap_queue(tap)
    try:
        set_up_tap(queue)
    except OSError as error:
        raise HostUnfitError(f"cannot use the tap {tap.name}: {error.strerror}") from error
    return Network(os.dup(queue), open_vhost_net(), mac, tap.mtu)


def tap_queue(tap: Tap) -> tuple[int, bytes]:
    """A tap's only queue, as a descriptor, and its address as six bytes. Raises NotSupportedError."""
    if len(tap.fds) != 1:
        raise NotSupportedError(
            f"cannot use the tap {tap.name} with {len(tap.fds)} queues that are open: only one"
        )
    return tap.fds[0], bytes.fromhex(tap.mac.replace(":", ""))


def open_vhost_net() -> int:
    """The host's vhost-net. Raises HostUnfitError."""
    try:
        return libc.open_node(VHOST_NET, os.O_RDWR)
    except OSError as error:
        raise HostUnfitError(
            f"cannot open {VHOST_NET}: {error.strerror}; load the module vhost_net, and allow the device in "
            "the pod's cgroup"
        ) from error


def open_spares(spec: VmSpec, unused: contextlib.ExitStack) -> list[Block | Network]:
    """The empty devices of what may be plugged in later. unused: closes them. Raises HostUnfitError."""
    spares: list[Block | Network] = [Block() for _ in range(spec.spare_disks)]
    for _ in range(spec.spare_taps):
        spares.append(Network(NO_TAP, open_vhost_net()))
        unused.callback(spares[-1].close)
    return spares


def open_entropy() -> Entropy:
    """The host's random numbers.

    Raises:
        HostUnfitError: it has none.
    """
    try:
        return Entropy(libc.open_node(ENTROPY, os.O_RDONLY))
    except OSError as error:
        raise HostUnfitError(f"cannot open {ENTROPY} for the guest: {error.strerror}") from error
