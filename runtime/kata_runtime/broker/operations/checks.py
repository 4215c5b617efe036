"""Checks of single arguments: each takes whatever JSON can hold, and says whether it may be used.

Whether a path lies in the sandbox is checked where it is resolved (`path_scope`, `authorization`), because
only the file system can tell.
"""

from __future__ import annotations

import base64
import os

from kata_hypervisor.api_request import is_name
from kata_runtime.broker.messages import MAX_DESCRIPTORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    Check = Callable[[Any], bool]

MAX_ITEMS = 1024
"""Entries of an argv, an environment, the options of a mount."""
MAX_DEPTH = 128
MAX_CHILD_FD = 255
MAX_JAIL_FILES = 64
MAX_PROGRAM = 4096 * 8
"""Bytes of a seccomp program: BPF_MAXINSNS of the kernel's bpf_common.h."""
MAX_CPU = 99_999
"""The largest that a list of CPUs may name."""
MAX_VCPUS = 255
_MAX_DEVICE = 21

# -- made of others ----------------------------------------------------------------------------------------


def optional(check: Check) -> Check:
    """None, or what the check takes."""
    return lambda value: value is None or check(value)


def number(low: int, high: int) -> Check:
    """An integer within bounds, both included."""
    return lambda value: type(value) is int and low <= value <= high


def one_of(names: Collection[str]) -> Check:
    """One of these strings."""
    return lambda value: isinstance(value, str) and value in names


def list_of(check: Check, low: int, high: int) -> Check:
    """A list of so many of what the check takes."""
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


# -- text --------------------------------------------------------------------------------------------------


def text(value: Any) -> bool:
    """A string that the kernel takes: no NUL, and nothing that cannot become bytes."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def label(value: Any) -> bool:
    """A name that may be printed in a log."""
    return text(value) and 0 < len(value) <= 200 and value.isprintable()


def sha256(value: Any) -> bool:
    """A SHA-256 in hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def name(value: Any) -> bool:
    """Letters, digits, hyphens and underscores; see `kata_hypervisor.api_request.is_name`."""
    return isinstance(value, str) and is_name(value)


def device(value: Any) -> bool:
    """A device's numbers, "MAJOR:MINOR"."""
    parts = value.split(":") if isinstance(value, str) and len(value) <= _MAX_DEVICE else []
    return len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts)


def path(value: Any) -> bool:
    """An absolute path, no deeper than any that is needed: who makes it goes down name by name."""
    return text(value) and value.startswith("/") and len(value) < 4096 and value.count("/") <= MAX_DEPTH


def uri(value: Any) -> bool:
    """Text that is no longer than an address has to be."""
    return text(value) and 0 < len(value) < 1 << 15


def shared_place(value: Any) -> bool:
    """A path below the shared directory, as it was answered: that of a volume, or one in a volume."""
    return text(value) and 0 < len(value) < 4200


def path_in_image(value: Any) -> bool:
    """A path, absolute or not, that is looked up with a directory as its root."""
    return text(value) and 0 < len(value) < 4096


# -- numbers -----------------------------------------------------------------------------------------------


def interface(value: Any) -> bool:
    """The name of a network interface: what the kernel takes (net/core/dev.c, dev_valid_name), but no "%"."""
    if not text(value) or not 0 < len(os.fsencode(value)) < 16 or value in (".", ".."):
        return False
    return not any(letter in "/:%" or letter.isspace() for letter in value)


def flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


pid = number(2, 2**22)
"""A process or thread id; never that of init."""
port = number(1, 2**32 - 2)
"""A vsock port."""


def cpus(value: Any) -> bool:
    """Different CPUs of the host, at most as many as a machine has."""
    return list_of(number(0, MAX_CPU), 0, MAX_VCPUS)(value) and len(set(value)) == len(value)


def guest_address(value: Any) -> bool:
    """Where a guest's ports are reached: its vsock context id, or the path of its VMM's unix socket."""
    return number(3, 2**32 - 2)(value) or path(value)


_BUCKET = frozenset({"size", "refill_time", "one_time_burst"})


def limits(value: Any) -> bool:
    """A rate limiter of two token buckets, see `kata_hypervisor.rate_limiter`."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"bandwidth", "ops"}
        and all(
            isinstance(bucket, dict)
            and _BUCKET - {"one_time_burst"} <= bucket.keys() <= _BUCKET
            and all(number(0, (1 << 63) - 1)(item) for item in bucket.values())
            for bucket in value.values()
        )
    )


# -- of a child --------------------------------------------------------------------------------------------


def argv(value: Any) -> bool:
    """The absolute path of a program, and its arguments."""
    return list_of(text, 1, MAX_ITEMS)(value) and path(value[0])


def child_fds(value: Any) -> bool:
    """Different descriptor numbers, one for each descriptor that comes along."""
    return list_of(number(0, MAX_CHILD_FD), 0, MAX_DESCRIPTORS)(value) and len(set(value)) == len(value)


def environment(value: Any) -> bool:
    """Names and values as execve(2) takes them."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_ITEMS
        and all(text(key) and key and "=" not in key and text(item) for key, item in value.items())
    )


def jail_files(value: Any) -> bool:
    """Files of the host by the names that they have in a jail's root."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_JAIL_FILES
        and all(
            name.replace("-", "").replace("_", "").isalnum() and len(name) <= 100 and path(source)
            for name, source in value.items()
        )
    )


def program(value: Any) -> bool:
    """A seccomp program, in base64."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return False
    return 0 < len(raw) <= MAX_PROGRAM and len(raw) % 8 == 0


_CHILD_FILTER: dict[str, Check] = {
    "policy": label,
    "advice": label,
    "code": program,
    "loading": lambda value: value == "" or program(value),
    "last": lambda value: list_of(number(0, 2**32 - 1), 0, 2)(value) and len(value) != 1,
    "readable": list_of(path, 0, MAX_ITEMS),
    "writable": list_of(path, 0, MAX_ITEMS),
    "until_told": flag,
    "any_path": flag,
}


def child_filter(value: Any) -> bool:
    """The fields of a `kata_hypervisor.seccomp.child_filter.ChildFilter`."""
    return (
        isinstance(value, dict)
        and value.keys() == _CHILD_FILTER.keys()
        and all(allowed(value[key]) for key, allowed in _CHILD_FILTER.items())
    )


def _device(value: Any) -> bool:
    """The path of a device."""
    return path(value) and value.startswith("/dev/") and ".." not in value


def _disks(value: Any) -> bool:
    """Block devices by whether they can only be read."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_JAIL_FILES
        and all(_device(path) and flag(readonly) for path, readonly in value.items())
    )


_PRIVILEGES: dict[str, Check] = {
    "files": list_of(path, 0, MAX_JAIL_FILES),
    "data": list_of(path, 0, MAX_JAIL_FILES),
    "devices": list_of(_device, 0, 16),
    "proc": flag,
    "written": list_of(number(0, MAX_CHILD_FD), 0, MAX_DESCRIPTORS),
    "serves": optional(path),
    "network": flag,
    "open_files": number(16, 1 << 20),
    "file_size": optional(number(0, (1 << 63) - 1)),
    "disks": _disks,
    "run_directory": optional(path),
    "writable": list_of(path, 0, 4),
    "jailer": flag,
}


def privileges(value: Any) -> bool:
    """The fields of a `kata_hypervisor.privileges.Privileges`."""
    return (
        isinstance(value, dict)
        and value.keys() == _PRIVILEGES.keys()
        and all(allowed(value[key]) for key, allowed in _PRIVILEGES.items())
    )


# -- of a mount --------------------------------------------------------------------------------------------

FILESYSTEMS = ("bind", "overlay", "ext4", "xfs", "btrfs", "zfs", "erofs", "squashfs")
"""What a container's root may be made of, see `mount_policy`; each exposes its kernel code to the image."""


def mount(value: Any) -> bool:
    """[type, source, options] as containerd gives them."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    kind, source, options = value
    return (
        one_of(FILESYSTEMS)(kind) and text(source) and bool(source) and list_of(text, 0, MAX_ITEMS)(options)
    )
