"""virtiofsd, the process that serves a directory of the host to the guest: its start, and its confinement.

There are two programs of that name with different options: QEMU's own in C (Debian 12, QEMU before 8.0), and
its successor in Rust. Sources: virtiofsd(1) of QEMU 7.2; the README of virtiofsd 1.13. Both take a listening
socket as a descriptor and accept one connection.

The broker makes its root, user and namespaces (`privileges`). Of its own sandboxes it uses "chroot": one
process, whose root is the shared directory; the other, "namespace", would take the privilege to mount.

It filters itself, but not all of its threads: the older program has one that was there before. So it begins
under a filter of ours, which all of them have. Both are verified here.
"""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import socket
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

import anyio

from kata_hypervisor.children import Children
from kata_hypervisor.errors import ConfinementError, HostUnfitError, SealError
from kata_hypervisor.host import Host
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp import actions, compiled
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters

NAME = "virtiofsd"
"""Its role among a machine's processes."""

LISTENER = 3
"""Descriptor of the listening socket in the daemon."""

CAPABILITIES = "-mknod"
"""Taken from what it keeps: a guest makes no device nodes on the host, which would be those of its disks."""


XATTR_MAP = (
    ":ok:all:security.capability:security.capability:"
    ":prefix:all:security.:user.virtiofs.:"
    ":prefix:all:trusted.:user.virtiofs.:"
    ":bad:client:user.virtiofs.::"
    ":ok:all:user.:user.:"
    ":ok:all:system.posix_acl_:system.posix_acl_:"
    ":bad:all:::"
)
"""Which extended attribute of the host is which of the guest's: the first rule that fits, in both programs.

File capabilities and ACLs are the host's, like the set-user-ID bit and the owner: an image brings them along.
What security modules and the kernel's own file systems write is kept under another name, where it means
nothing to the host; that of the host is not shown.
"""

OPEN_FILES = 1_000_000
"""Descriptors that it may have, one for each file that the guest knows: what both programs would ask for."""

FEW_OPEN_FILES = 1 << 16
"""A limit that a large image alone reaches, so that the guest has to forget what it will use again."""

_CAP_SYS_RESOURCE = 24  # linux/capability.h

OURS = 1
"""Filters that all of its threads have of us; the main one, and what it starts, has its own besides."""

REFUSED = actions.KILL_PROCESS
"""What comes of a call that our filter does not allow."""

POLL = 0.005

REQUIREMENT = "sharing files with the guest"
"""What requires its filter, in sentences; nothing of the configuration turns it off."""


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
    always announced: one shared directory holds several file systems whose inode numbers collide. Extended
    attributes and POSIX ACLs are on; the older program's no_xattr and no_posix_acl turn them off.
    """
    announce = "--announce-submounts"
    attributes = ("--xattr", "--posix-acl", announce)
    if dialect is Dialect.RUST:
        options = [f"--shared-dir={directory}", f"--cache={cache}", "--sandbox=chroot"]
        options.append(f"--modcaps={CAPABILITIES}")
        options.append(f"--xattrmap={XATTR_MAP}")
        options += [option for option in attributes if option not in extra]
        return [str(daemon), f"--fd={LISTENER}", *options, *extra]
    if "," in str(directory):
        raise HostUnfitError(
            f"cannot share {directory} with the guest: virtiofsd {daemon} takes no comma in a path"
        )
    mode = "none" if cache == "never" else cache
    options = [f"source={directory}", f"cache={mode}", "announce_submounts", "log_level=warn"]
    options += ["sandbox=chroot", f"modcaps={CAPABILITIES}"]
    if not _is_switched_off(extra, "xattr"):
        options += ["xattr", f"xattrmap={XATTR_MAP}"]
        options += [] if _is_switched_off(extra, "posix_acl") else ["posix_acl"]
    extra = [argument for argument in extra if argument not in attributes]
    return [str(daemon), f"--fd={LISTENER}", *(part for option in options for part in ("-o", option)), *extra]


def _is_switched_off(extra: Sequence[str], name: str) -> bool:
    """Whether an operator's argument after -o turns an option of the older program off."""
    return any(
        f"no_{name}" in argument.removeprefix("-o").split(",") for argument in extra if "--" not in argument
    )


def most_open_files(extra: Sequence[str] = (), *, proc: Path = Path("/proc")) -> int:
    """How many descriptors a virtiofsd may have that this process has started, and with it files the guest.

    extra: the operator's arguments; its own limit may be lower than what it is given.
    """
    status = dict(line.split(":", 1) for line in (proc / "self/status").read_text().splitlines())
    if int(status["CapEff"], 16) >> _CAP_SYS_RESOURCE & 1:
        highest = int((proc / "sys/fs/nr_open").read_text())
    else:
        highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = min(OPEN_FILES, highest)
    words = [word for argument in extra for word in argument.split("=", 1)]
    for name, value in itertools.pairwise(words):
        if name == "--rlimit-nofile" and 0 < int(value) < most:
            most = int(value)
    return most


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


def wrapper() -> ChildFilter:
    """The filter that each of its threads has from us. Raises PolicyError, SealError."""
    return ChildFilter(
        policy=compiled.source_of(NAME),
        advice=f"kata-ctl seccomp show --driver {NAME} prints the policy",
        code=compiled.program_of(NAME, (), REFUSED).code,
    )


class Table(Protocol):
    """What of a VMM's table of the configuration is read here."""

    @property
    def virtio_fs_daemon(self) -> Path: ...
    @property
    def virtio_fs_cache(self) -> str: ...
    @property
    def virtio_fs_extra_args(self) -> Sequence[str]: ...


class FileServer:
    """The virtiofsd of one machine.

    table: the VMM's. children: of which it becomes one. host: starts it, and says what the kernel reports.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    def __init__(self, table: Table, children: Children, host: Host) -> None:
        self._table = table
        self._children = children
        self._host = host
        self._inherited = inherited_filters()

    async def start(self, directory: Path, listener: socket.socket) -> None:
        """Start it, to serve a directory to who connects first. Raises HostUnfitError, LaunchError."""
        table, daemon = self._table, self._table.virtio_fs_daemon
        argv = command_line(
            daemon, dialect_of(daemon), directory, table.virtio_fs_cache, table.virtio_fs_extra_args
        )
        privileges = Privileges(devices=(), proc=True, serves=directory, network=False, open_files=OPEN_FILES)
        await self._children.spawn(
            NAME,
            argv,
            {LISTENER: listener.fileno()},
            seccomp=wrapper(),
            privileges=privileges,
        )

    @property
    def waits_for_connection(self) -> bool:
        """Whether it puts on its filter only when somebody has connected: the older program does."""
        return dialect_of(self._table.virtio_fs_daemon) is Dialect.C

    async def verify(self, budget: float, *, read_back: bool = True) -> tuple[str, ...]:
        """Wait until each of its threads has its filter; nothing where it was not started.

        budget: seconds to wait at most. read_back: whether to see that the filter forbids something, which a
        sealed process cannot ask for. Returns warnings.

        Raises:
            ConfinementError: it has none in time, or one that allows everything.
            ProcessLookupError: it has exited.
        """
        if NAME not in self._children:
            return ()
        deadline = anyio.current_time() + budget
        while (breach := await self._breach()) is not None:
            if anyio.current_time() > deadline:
                raise ConfinementError(breach)
            await anyio.sleep(POLL)
        child = self._children[NAME]
        if not read_back:
            return ()
        try:
            effective = await self._host.filters_effective(child, child.pid, self._inherited + OURS)
        except SealError as error:
            return (f"cannot read the content of {NAME}'s filter, only that it is there: {error}",)
        if not effective:
            raise ConfinementError(
                f"the filter of {NAME} allows every system call; {REQUIREMENT} requires one that refuses "
                "some: use a release build"
            )
        return ()

    async def check(self) -> None:
        """See that each of its threads, if it has any, has its filter now. Raises as `verify`."""
        if NAME in self._children and (breach := await self._breach()) is not None:
            raise ConfinementError(breach)

    async def _breach(self) -> str | None:
        threads = await self._host.confinement(self._children[NAME])
        main = [thread for thread in threads if thread.tid == self._children[NAME].pid]
        named = {"process": NAME, "required_by": REQUIREMENT}
        return find_breach(threads, True, self._inherited, **named) or find_breach(
            main, True, self._inherited + OURS, **named
        )
