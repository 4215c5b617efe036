"""Devices of a pod: both forms of the rules, held to one meaning by an interpreter of the program."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kata_runtime.broker import device_rules
from kata_runtime.broker.device_rules import BLOCK, CHARACTER, EVERY, MAKE_ANY, NODES, DeviceRule

_MASK = 2**64 - 1
ACCESS = {"m": 1, "r": 2, "w": 4}


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """Interpret a program as the kernel does, for those instructions that it is made of."""
    context = struct.pack(
        "=3I", sum(map(ACCESS.__getitem__, access)) << 16 | {BLOCK: 1, CHARACTER: 2}[kind], major, minor
    )
    instructions = list(struct.iter_unpack("=BBhi", program))
    registers: list[int | None] = [None] * 10
    registers[1] = 0  # the context's address
    place = 0
    while True:
        code, pair, offset, immediate = instructions[place]
        target, source = pair & 15, pair >> 4
        place += 1
        match code:
            case 0x61:
                assert registers[source] == 0, "only the context can be read"
                (registers[target],) = struct.unpack_from("=I", context, offset)
            case 0xBF:
                registers[target] = known(registers[source])
            case 0xB7:
                registers[target] = immediate & _MASK
            case 0x57:
                registers[target] = known(registers[target]) & immediate & _MASK
            case 0x77:
                registers[target] = known(registers[target]) >> immediate
            case 0x55:
                place += offset if known(registers[target]) != immediate & _MASK else 0
            case 0x95:
                return known(registers[0])
            case _:
                raise AssertionError(f"opcode {code:#x}")
        assert 0 < place < len(instructions)


def known(value: int | None) -> int:
    assert value is not None, "a register is read before it is written"
    return value


def allows(line: str, kind: str, major: int, minor: int, access: str) -> bool:
    """What a line of version 1 means (devices.rst)."""
    wanted, numbers, letters = line.split()
    first, second = numbers.split(":")
    return (
        wanted == kind
        and first in ("*", str(major))
        and second in ("*", str(minor))
        and set(access) <= set(letters)
    )


numbers = some.integers(0, 5) | some.integers(0, 2**20)
letters = some.lists(some.sampled_from("rwm"), min_size=1, unique=True).map("".join)
kinds = some.sampled_from((BLOCK, CHARACTER))
a_rule = some.builds(DeviceRule, kinds, some.none() | numbers, some.none() | numbers, letters)


@given(some.lists(a_rule, max_size=8), kinds, numbers, numbers, letters)
def test_both_forms_mean_the_same(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: str
) -> None:
    text = any(allows(line, kind, major, minor, access) for line in device_rules.lines(rules))
    assert run(device_rules.program(rules), kind, major, minor, access) == int(text)


def test_without_rules_nothing_is_allowed() -> None:
    assert run(device_rules.program([]), CHARACTER, 1, 3, "r") == 0


def test_the_nodes_of_this_host(tmp_path: Path) -> None:
    (null,) = device_rules.of_node("/dev/null")
    assert str(null) == "c 1:3 rwm"
    (tmp_path / "file").touch()
    assert device_rules.of_node(str(tmp_path / "file")) == []
    assert device_rules.of_node(str(tmp_path / "absent")) == []
    assert device_rules.of_like_block_devices("/dev/null") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mknod needs root")
def test_a_block_device_stands_for_those_beside_it(tmp_path: Path) -> None:
    os.mknod(tmp_path / "disk", 0o600 | 0o060000, os.makedev(253, 7))
    assert device_rules.lines(device_rules.of_node(str(tmp_path / "disk"))) == ["b 253:7 rwm"]
    assert device_rules.lines(device_rules.of_like_block_devices(str(tmp_path / "disk"))) == ["b 253:* rw"]


def test_nodes_may_be_made_where_images_are_and_not_opened() -> None:
    program = device_rules.program(MAKE_ANY)
    assert run(program, BLOCK, 8, 0, "m") == 1
    assert run(program, BLOCK, 8, 0, "r") == 0
    assert run(program, CHARACTER, 5, 1, "rw") == 0


def test_no_node_that_is_a_disk_or_the_hosts_memory_is_on_the_list() -> None:
    paths = [path for path, reason in NODES if reason]
    assert len(paths) == len(NODES)
    assert not {"/dev/mem", "/dev/kmsg", "/dev/console", "/dev/fuse"} & set(paths)
    assert all(rule.kind == CHARACTER for path in paths for rule in device_rules.of_node(path))
    assert EVERY is None
