"""virtiofsd, the process that serves a directory of the host to the guest.

There are two programs of that name with different options: QEMU's own in C (Debian 12, QEMU before 8.0), and
its successor in Rust. Sources: virtiofsd(1) of QEMU 7.2; the README of virtiofsd 1.13. Both take a listening
socket as a descriptor and accept one connection.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from kata_hypervisor.errors import HostUnfitError

LISTENER = 3
"""Descriptor of the listening socket in the daemon."""

CAPABILITIES = "-mknod"
"""Taken from what it keeps: a guest makes no device nodes on the host, which would be those of its disks."""


class Dialect(Enum):
    """Which program's options a virtiofsd understands."""

    C = "C"
    RUST = "Rust"


def dialect_of(daemon: Path) -> Dialect:
    """Tell which program this is by the names of options in it, without running it; if unsure, the successor.

    Raises:
        HostUnfitError: there is no such program.
    """
    try:
        with daemon.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            has_successors_option = content.find(b"shared-dir") >= 0
            legacy = content.find(b"announce_submounts") >= 0 and not has_successors_option
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise HostUnfitError(
            f"cannot share files with the guest: virtiofsd {daemon}: {reason}; "
            'install the package "virtiofsd" (Debian 12: "qemu-system-common"), '
            "or correct virtio_fs_daemon in [hypervisor.qemu]"
        ) from error
    return Dialect.C if legacy else Dialect.RUST


def command_line(
    daemon: Path, dialect: Dialect, directory: Path, cache: str, extra: Sequence[str] = ()
) -> list[str]:
    """Build the daemon's command line.

    cache: "never", "auto" or "always". extra: the operator's own arguments, which come last. Submounts are
    always announced: one shared directory holds several file systems whose inode numbers collide.
    """
    announce = "--announce-submounts"
    if dialect is Dialect.RUST:
        options = [f"--shared-dir={directory}", f"--cache={cache}", f"--modcaps={CAPABILITIES}"]
        options += [] if announce in extra else [announce]
        return [str(daemon), f"--fd={LISTENER}", *options, *extra]
    if "," in str(directory):
        raise HostUnfitError(
            f"cannot share {directory} with the guest: virtiofsd {daemon} takes no comma in a path"
        )
    mode = "none" if cache == "never" else cache
    options = [f"source={directory}", f"cache={mode}", "announce_submounts", "log_level=warn"]
    options.append(f"modcaps={CAPABILITIES}")
    extra = [argument for argument in extra if argument != announce]
    return [str(daemon), f"--fd={LISTENER}", *(part for option in options for part in ("-o", option)), *extra]


def rendezvous(directory: Path) -> tuple[socket.socket, socket.socket]:
    """Make a listening socket and a connection that waits in its queue; nothing remains in the directory.

    The kernel completes a connection before anybody accepts it, so the name is gone before a child runs. It
    is reached through the directory's descriptor, because a socket's path may have 107 bytes only.
    """
    listener = socket.socket(socket.AF_UNIX)
    connection = socket.socket(socket.AF_UNIX)
    try:
        holder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            address = f"/proc/self/fd/{holder}/virtiofsd.sock"
            listener.bind(address)
            try:
                listener.listen(1)
                connection.connect(address)
            finally:
                os.unlink(address)
        finally:
            os.close(holder)
    except BaseException:
        listener.close()
        connection.close()
        raise
    return listener, connection
