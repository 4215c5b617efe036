"""All that can be asked of the broker: each operation with its arguments, checked before anything is done.

A compromised shim gets no more than this table. Whether a path lies in the sandbox is checked where it is
resolved (`territory`), because only the file system can tell.
"""

from __future__ import annotations

import base64
import os

from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.messages import MAX_DESCRIPTORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], bool]

# The roles under which a child may be started: the VMMs, their helpers, and no others.
CHILDREN = (
    "qemu",
    "virtiofsd",
    "cloud-hypervisor",
    "firecracker",
    "solo5-hvt",
    "solo5-spt",
)
# File systems that a container's root may be made of; each one's kernel code is exposed to the image.
FILESYSTEMS = ("bind", "overlay", "ext4", "xfs", "btrfs", "zfs", "erofs", "squashfs")
FIFO_MODES = {
    "r": os.O_RDONLY | os.O_NONBLOCK,
    "w": os.O_WRONLY | os.O_NONBLOCK,
    "rw": os.O_RDWR | os.O_NONBLOCK,
}

SEAL_MODES = ("enforce", "log")

MAX_CHILD_FD = 255
MAX_WORDS = 1024
MAX_MOUNTS = 16
MAX_JAIL_FILES = 64
MAX_PROGRAM = 4096 * 8
"""Bytes of a seccomp program: BPF_MAXINSNS of the kernel's bpf_common.h."""


def _text(value: Any) -> bool:
    """A string that the kernel takes: no NUL, and nothing that cannot become bytes."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _path(value: Any) -> bool:
    return _text(value) and value.startswith("/") and len(value) < 4096


def _path_in_image(value: Any) -> bool:
    return _text(value) and 0 < len(value) < 4096


def _hash(value: Any) -> bool:
    """A SHA-256 in hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _label(value: Any) -> bool:
    """A name that may be printed in a log."""
    return _text(value) and 0 < len(value) <= 200 and value.isprintable()


def _address(value: Any) -> bool:
    """Where a guest's ports are reached: its vsock context id, or the path of its VMM's unix socket."""
    return _number(3, 2**32 - 2)(value) or _path(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(names: object) -> Check:
    return lambda value: isinstance(value, str) and value in names  # type: ignore[operator]


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list(check: Check, low: int, high: int) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


def _words(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_WORDS
        and all(map(_text, value))
        and _path(value[0])
    )


def _child_fds(value: Any) -> bool:
    return _list(_number(0, MAX_CHILD_FD), 0, MAX_DESCRIPTORS)(value) and len(set(value)) == len(value)


def _environment(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_WORDS
        and all(_text(key) and key and "=" not in key and _text(text) for key, text in value.items())
    )


def _mount(value: Any) -> bool:
    """[type, source, options] as containerd gives them."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    kind, source, options = value
    return (
        _one_of(FILESYSTEMS)(kind) and _text(source) and bool(source) and _list(_text, 0, MAX_WORDS)(options)
    )


def _jail_files(value: Any) -> bool:
    """Files of the host by the names that they have in a jail's root."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_JAIL_FILES
        and all(
            name.replace("-", "").replace("_", "").isalnum() and len(name) <= 100 and _path(path)
            for name, path in value.items()
        )
    )


def _program(value: Any) -> bool:
    """A seccomp program, in base64."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return False
    return 0 < len(raw) <= MAX_PROGRAM and len(raw) % 8 == 0


_FILTER: dict[str, Check] = {
    "policy": _label,
    "advice": _label,
    "code": _program,
    "loading": _program,
    "last": lambda value: _list(_number(0, 2**32 - 1), 0, 2)(value) and len(value) != 1,
    "readable": lambda value: _list(_path, 0, MAX_WORDS)(value),
    "writable": lambda value: _list(_path, 0, MAX_WORDS)(value),
}


def _filter(value: Any) -> bool:
    """The fields of a `kata_hypervisor.seccomp.child_filter.ChildFilter`."""
    return (
        isinstance(value, dict)
        and value.keys() == _FILTER.keys()
        and all(allowed(value[key]) for key, allowed in _FILTER.items())
    )


_PID = _number(2, 2**22)

OPERATIONS: dict[str, dict[str, Check]] = {
    "prepare": {"cgroup": _optional(_text)},
    "spawn": {
        "name": _one_of(CHILDREN),
        "argv": _words,
        "fds": _child_fds,
        "environment": _optional(_environment),
        "gate": _optional(_number(3, MAX_CHILD_FD)),
        "filter": _optional(_filter),
    },
    "kill": {"pid": _PID, "signal": _number(1, 64)},
    "confinement": {"pid": _PID},
    "announce_seal": {"mode": _one_of(SEAL_MODES), "policy": _label},
    "supervise": {},
    "open_spec": {"bundle": _path},
    "oom_kills": {},
    "discard": {"path": _path},
    "register_guest": {"address": _address},
    "connect_guest": {"port": _number(1, 2**32 - 2)},
    "connect_events": {},
    "make_directory": {"path": _path},
    "mount": {"target": _path, "mounts": _list(_mount, 1, MAX_MOUNTS)},
    "bind": {"source": _path, "target": _path, "readonly": _flag, "recursive": _flag},
    "unmount": {"target": _path},
    "remove": {"path": _path},
    "filters_effective": {"pid": _PID, "tid": _PID, "beyond": _number(0, 1000)},
    "make_jail": {"root": _path, "files": _jail_files},
    "open_fifo": {"path": _path, "mode": _one_of(FIFO_MODES)},
    "open_log": {"path": _path},
    "open_in_image": {"root": _path, "name": _path_in_image, "write": _flag},
    "make_image": {"root": _path},
    "open_image": {"name": _hash},
    "close": {},
}


def check(message: dict[str, Any], descriptors: int) -> tuple[str, dict[str, Any]]:
    """Return a request's operation and arguments when they are in the vocabulary.

    descriptors: how many came with it: "spawn" takes one for each of "fds", "supervise" one, the listener.

    Raises:
        RequestRefusedError: an unknown operation, or an argument that is missing, unknown or malformed.
    """
    arguments = {key: value for key, value in message.items() if key not in ("id", "op")}
    op = message.get("op")
    schema = OPERATIONS.get(op) if isinstance(op, str) else None
    if schema is None:
        raise RequestRefusedError(f"the broker knows no operation {str(op)[:40]!r}")
    if arguments.keys() != schema.keys():
        wrong = ", ".join(sorted(arguments.keys() ^ schema.keys()))
        raise RequestRefusedError(f"{op}: missing or unknown argument: {wrong[:100]}")
    for key, allowed in schema.items():
        if not allowed(arguments[key]):
            raise RequestRefusedError(f"{op}: {key} may not be {str(arguments[key])[:100]!r}")
    expected = 1 if op == "supervise" else len(arguments.get("fds", ()))
    if descriptors != expected:
        raise RequestRefusedError(f"{op}: {descriptors} descriptors came, {expected} were announced")
    return str(op), arguments
