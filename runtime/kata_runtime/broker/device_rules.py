"""Which devices the processes of a pod may open on the host, and the two forms in which a kernel takes that.

Version 1 of cgroups takes lines of text (the kernel's admin-guide/cgroup-v1/devices.rst). Version 2 takes a
program that is asked about each opening and each mknod(2); its instructions are made here, without a compiler
(bpf(2); include/uapi/linux/bpf.h: struct bpf_insn, struct bpf_cgroup_dev_ctx and BPF_DEVCG_*).

    struct bpf_insn {u8 code; u8 registers, dst in the lower half; s16 offset; s32 immediate}
    struct bpf_cgroup_dev_ctx {u32 access << 16 | type; u32 major; u32 minor}
"""

from __future__ import annotations

import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

BLOCK, CHARACTER = "b", "c"
EVERY = None
"""Any major or minor number."""

NODES = (
    ("/dev/null", "standard streams of children"),
    ("/dev/zero", "shared memory of older programs"),
    ("/dev/full", "as the two before: every program may expect it"),
    ("/dev/random", "random numbers, for the guest too"),
    ("/dev/urandom", "the same"),
    ("/dev/kvm", "the virtual machine, and the probe of KVM"),
    ("/dev/vhost-vsock", "the guest's vsock device"),
    ("/dev/vhost-net", "the guest's network device"),
    ("/dev/net/tun", "the guest's taps"),
)
"""What a pod's processes open, with the reason; those that this host has."""

_MKNOD, _READ, _WRITE = 1, 2, 4
_LETTERS = {"m": _MKNOD, "r": _READ, "w": _WRITE}
_TYPES = {BLOCK: 1, CHARACTER: 2}
_ALL = _MKNOD | _READ | _WRITE

_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_WORD, _MOVE, _MOVE_NUMBER, _AND, _SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77
_JUMP_UNLESS_EQUAL, _EXIT = 0x55, 0x95
# What each register holds in the program.
_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)


class DeviceRule:
    """Devices that may be used. kind: BLOCK or CHARACTER. access: letters of "rwm", as version 1 has them."""

    __slots__ = ("access", "kind", "major", "minor")

    def __init__(self, kind: str, major: int | None, minor: int | None, access: str) -> None:
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    def is_of(self, other: DeviceRule) -> bool:
        """Whether it names the same devices."""
        return (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)

    def __str__(self) -> str:
        major, minor = ("*" if number is EVERY else number for number in (self.major, self.minor))
        return f"{self.kind} {major}:{minor} {self.access}"


MAKE_ANY = (DeviceRule(BLOCK, EVERY, EVERY, "m"), DeviceRule(CHARACTER, EVERY, EVERY, "m"))
"""Nodes may be made and not opened: copies of root file systems have them."""


def of_node(path: str) -> list[DeviceRule]:
    """The rule for the device node at a path; none where there is no such node."""
    try:
        return _rules(os.stat(path))
    except OSError:
        return []


def _rules(found: os.stat_result) -> list[DeviceRule]:
    kinds = {stat.S_IFBLK: BLOCK, stat.S_IFCHR: CHARACTER}
    if (kind := kinds.get(stat.S_IFMT(found.st_mode))) is None:
        return []
    return [DeviceRule(kind, os.major(found.st_rdev), os.minor(found.st_rdev), "rwm")]


def given(
    descriptors: Iterable[int], seccomp: Mapping[str, Any], privileges: Mapping[str, Any]
) -> list[DeviceRule]:
    """Rules for the devices among what a child is given: it may open them, or open them again, when it runs.

    seccomp: the fields of its ChildFilter. privileges: of its Privileges.
    """
    paths = [*seccomp.get("readable", ()), *seccomp.get("writable", ())]
    paths += [*privileges.get("files", ()), *privileges.get("devices", ())]
    found = [rule for fd in descriptors for rule in _rules(os.fstat(fd))]
    return found + [rule for path in paths for rule in of_node(path)]


def of_pod(children: Iterable[DeviceRule], block_devices: Iterable[str], *, images: bool) -> list[DeviceRule]:
    """All rules of a pod. children: those of `given`. block_devices: paths. images: whether it makes some."""
    nodes = [rule for path, _ in NODES for rule in of_node(path)]
    later = [rule for path in block_devices for rule in of_like_block_devices(path)]
    return [*nodes, *children, *later, *(MAKE_ANY if images else ())]


def of_like_block_devices(path: str) -> list[DeviceRule]:
    """The rule for a block device, and for those with its major number: of containers that come later."""
    return [DeviceRule(rule.kind, rule.major, EVERY, "rw") for rule in of_node(path) if rule.kind == BLOCK]


def lines(rules: Iterable[DeviceRule]) -> list[str]:
    """The rules as version 1 takes them, each once."""
    return list(dict.fromkeys(map(str, rules)))


def program(rules: Iterable[DeviceRule]) -> bytes:
    """The rules as a program of the kind BPF_PROG_TYPE_CGROUP_DEVICE: 1 allows, 0 refuses."""
    made = [
        _INSTRUCTION.pack(_LOAD_WORD, _registers(_TYPE, _CONTEXT), 0, 0),
        _INSTRUCTION.pack(_MOVE, _registers(_ACCESS, _TYPE), 0, 0),
        _INSTRUCTION.pack(_AND, _registers(_TYPE), 0, 0xFFFF),
        _INSTRUCTION.pack(_SHIFT_RIGHT, _registers(_ACCESS), 0, 16),
        _INSTRUCTION.pack(_LOAD_WORD, _registers(_MAJOR, _CONTEXT), 4, 0),
        _INSTRUCTION.pack(_LOAD_WORD, _registers(_MINOR, _CONTEXT), 8, 0),
    ]
    for rule in rules:
        made += _allow_if(rule)
    return b"".join([*made, *_answer(0)])


def _allow_if(rule: DeviceRule) -> list[bytes]:
    """Answer yes when all of a rule holds, else go on behind it."""
    needed = [(_TYPE, _TYPES[rule.kind])]
    needed += [(_MAJOR, rule.major)] if rule.major is not EVERY else []
    needed += [(_MINOR, rule.minor)] if rule.minor is not EVERY else []
    beyond = _ALL & ~sum(_LETTERS[letter] for letter in rule.access)
    # The context is read by then; its register holds what is asked for beyond the rule.
    masked = [
        _INSTRUCTION.pack(_MOVE, _registers(_CONTEXT, _ACCESS), 0, 0),
        _INSTRUCTION.pack(_AND, _registers(_CONTEXT), 0, beyond),
    ]
    needed.append((_CONTEXT, 0))
    answer = _answer(1)
    left = len(needed) + len(answer)
    tests = []
    for register, value in needed:
        left -= 1
        tests.append(_INSTRUCTION.pack(_JUMP_UNLESS_EQUAL, _registers(register), left, value))
    return [*masked, *tests, *answer]


def _answer(value: int) -> list[bytes]:
    return [
        _INSTRUCTION.pack(_MOVE_NUMBER, _registers(_RESULT), 0, value),
        _INSTRUCTION.pack(_EXIT, 0, 0, 0),
    ]


def _registers(target: int, source: int = 0) -> int:
    return source << 4 | target
