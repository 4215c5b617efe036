"""Devices on files of the host, which are opened before the process is sealed."""

from __future__ import annotations

import os
from pathlib import Path

from kata_hypervisor.dragonball.virtio.block import Block
from kata_hypervisor.dragonball.virtio.entropy import Entropy
from kata_hypervisor.errors import HostUnfitError, LaunchError

ENTROPY = "/dev/urandom"


def open_image(path: Path) -> Block:
    """The guest's root file system, as a disk that it cannot write.

    Raises:
        LaunchError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"cannot open the guest's image {path}: {error.strerror}") from error
    return Block(descriptor, os.lseek(descriptor, 0, os.SEEK_END), read_only=True, identity=b"image")


def open_entropy() -> Entropy:
    """The host's random numbers.

    Raises:
        HostUnfitError: it has none.
    """
    try:
        return Entropy(os.open(ENTROPY, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise HostUnfitError(f"cannot open {ENTROPY} for the guest: {error.strerror}") from error
