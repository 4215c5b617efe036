"""Mounts as containerd describes them: their options understood, and put on a place of the sandbox.

Bind mounts are cloned, made read-only, and only then attached. A remount afterwards would come too late: by
then the mount has been propagated, writable, into virtiofsd's mount namespace. Source of the options:
mount(8); containerd's core/mount takes the same names.
"""

from __future__ import annotations

import errno
import os

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.mount_policy import NO_PATHS, PATH_OPTIONS
from kata_runtime.syscalls import (
    MS_DIRSYNC,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kata_runtime.broker.origin import Find, Origin
    from kata_runtime.broker.path_scope import Place

# name: (flags that it sets, flags that it clears)
_OPTIONS = {
    "defaults": (0, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "atime": (0, MS_NOATIME),
    "noatime": (MS_NOATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
}
# What a bind mount can have of its own; the other flags are the file system's.
_ATTRIBUTES = {
    MS_RDONLY: syscalls.MOUNT_ATTR_RDONLY,
    MS_NOSUID: syscalls.MOUNT_ATTR_NOSUID,
    MS_NODEV: syscalls.MOUNT_ATTR_NODEV,
    MS_NOEXEC: syscalls.MOUNT_ATTR_NOEXEC,
    MS_NOATIME: syscalls.MOUNT_ATTR_NOATIME,
    MS_NODIRATIME: syscalls.MOUNT_ATTR_NODIRATIME,
    MS_STRICTATIME: syscalls.MOUNT_ATTR_STRICTATIME,
}
# Options that change what the call does, or need a helper that the broker does not have.
_REFUSED = (
    "remount",
    "loop",
    "move",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
)

_CONFINED = MS_NOSUID | MS_NODEV | MS_NOEXEC
"""Of every mount: nothing in it is a program or a device for the host. The guest has its own rules."""

MAX_DATA = 4095
"""Bytes of file system options that mount(2) takes: a page with its NUL."""


class Options:
    """A mount's options. flags: MS_*. bind: None, or whether it is recursive. own: the file system's own."""

    __slots__ = ("bind", "flags", "own")

    def __init__(self, flags: int, bind: bool | None, own: Sequence[str]) -> None:
        self.flags = flags
        self.bind = bind
        self.own = own

    @property
    def data(self) -> str:
        """The file system's own options as mount(2) takes them."""
        return ",".join(self.own)

    @property
    def attributes(self) -> int:
        """The flags as MOUNT_ATTR_*, for a bind mount."""
        return sum(attribute for flag, attribute in _ATTRIBUTES.items() if self.flags & flag)


def parse_options(options: Iterable[str]) -> Options:
    """Understand mount(8)'s options; later ones win. Raises RequestRefusedError for an impossible one."""
    flags, bind, own = 0, None, []
    for option in options:
        if option in _REFUSED:
            raise RequestRefusedError(f"the mount option {option!r} is not possible here")
        if option in ("bind", "rbind"):
            bind = option == "rbind"
        elif option in _OPTIONS:
            to_set, to_clear = _OPTIONS[option]
            flags = flags & ~to_clear | to_set
        elif option:
            own.append(option)
    return Options(flags, bind, own)


def compact(data: str) -> tuple[str, str]:
    """Shorten overlay's options for a mount(2) made from another working directory.

    Returns that directory and the options with the lower directories relative to it. An image of many layers
    has longer options than a page, which is all that mount(2) takes; the layers share a long prefix.

    Raises:
        RequestRefusedError: they are too long even so.
    """
    options = data.split(",")
    for index, option in enumerate(options):
        key, _, value = option.partition("=")
        lowers = value.split(":")
        # A backslash escapes a colon or a comma: such a name is not for splitting.
        if key == "lowerdir" and "\\" not in data and all(os.path.isabs(lower) for lower in lowers):
            base = os.path.commonpath([os.path.dirname(lower) for lower in lowers])
            options[index] = "lowerdir=" + ":".join(os.path.relpath(lower, base) for lower in lowers)
            data = ",".join(options)
            break
    else:
        base = "/"
    if len(os.fsencode(data)) > MAX_DATA:
        raise RequestRefusedError(
            f"overlay's options have {len(os.fsencode(data))} bytes, and the kernel takes {MAX_DATA}; "
            "rebuild the image with fewer layers, or give containerd's root a shorter path"
        )
    return base, data


def mount(kind: str, source: str, options: Options, place: Place, origin: Origin, find: Find | None) -> None:
    """Mount on a place that exists; on a mount point it goes on top.

    origin: where the source of a bind mount is looked up. find: opens each path of the host, source and
    overlay's directories; None to have the kernel look them up by their names.

    Raises:
        RequestFailedError: the kernel refuses; the message says what was tried.
    """
    try:
        if options.bind is not None or kind == "bind":
            how = {"find": find} if find else {}
            tree = origin.take(source, recursive=bool(options.bind), **how)
            try:
                bind(tree, place, options.attributes, recursive=bool(options.bind))
            finally:
                os.close(tree)
        elif find:
            _mount_found(kind, source, options, place, find)
        else:
            _mount_filesystem(kind, source, options.flags, options.data, place)
    except OSError as error:
        number = error.errno or 0
        raise RequestFailedError(
            f"cannot mount {kind} {source[:200]} on {place.path}: {error.strerror}{_hint(number)}", number
        ) from None


def _split(kind: str, source: str, own: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The source, and each option: its key with "=", and the paths in its value; without any, the option."""
    is_path = source not in NO_PATHS and kind != "zfs"
    parts: list[tuple[str, list[str]]] = [("", [source] if is_path else [])]
    for option in own:
        key, separator, value = option.partition("=")
        if key.rstrip("+") in PATH_OPTIONS:
            parts.append((key + separator, value.split(":")))
        else:
            parts.append((option, []))
    return parts


def _mount_found(kind: str, source: str, options: Options, place: Place, find: Find) -> None:
    """Mount what the paths were found to be: whatever is put in their place meanwhile, it is not mounted."""
    held: list[int] = []

    def pin(path: str) -> str:
        held.append(find(path))
        return f"/proc/self/fd/{held[-1]}"

    try:
        (_, first), *rest = _split(kind, source, options.own)
        pinned = pin(first[0]) if first else source
        data = ",".join(key + ":".join(map(pin, paths)) for key, paths in rest)
        _mount_filesystem(kind, pinned, options.flags, data, place)
    finally:
        for fd in held:
            os.close(fd)


def _mount_filesystem(kind: str, source: str, flags: int, data: str, place: Place) -> None:
    base = "/"
    if len(os.fsencode(data)) > MAX_DATA:
        base, data = compact(data)
    target = place.open()
    try:
        os.chdir(base)
        syscalls.mount(source, f"/proc/self/fd/{target}", kind, flags | _CONFINED, data)
    finally:
        os.chdir("/")
        os.close(target)


def bind(tree: int, place: Place, attributes: int, *, recursive: bool, top: int = 0) -> None:
    """Put a detached copy of a mount, see Origin.take, on a place that exists. Raises OSError.

    attributes: of what is mounted below it too, if it comes along. top: further ones, of itself alone.
    """
    attributes |= syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    # Private: neither this mount nor its end may reach back to where it was taken from.
    syscalls.set_attributes(tree, attributes, recursive=recursive, propagation=syscalls.MS_PRIVATE)
    if top:
        syscalls.set_attributes(tree, top, recursive=False)
    target = place.open()
    try:
        syscalls.attach_tree(tree, target)
    finally:
        os.close(target)


def unmount(place: Place) -> None:
    """Unmount a place's topmost mount, or detach one in use. Raises OSError: EINVAL when there is none."""
    try:
        syscalls.unmount(place.handle)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        syscalls.unmount(place.handle, lazy=True)


def _hint(number: int) -> str:
    if number == errno.ENOSYS:
        return " (Linux 5.12 or later is needed)"
    if number == errno.ENODEV:
        return " (the kernel does not know this file system: load its module)"
    return ""
