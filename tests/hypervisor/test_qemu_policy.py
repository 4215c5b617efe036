"""QEMU's policy: how little it leaves, for every accelerator and C library."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.driver_policy import CHILDREN, policy_of, rules_of
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.qemu import allowlist
from kata_hypervisor.seccomp import actions, bpf, syscalls
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.policy import PROCESS
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import survey
from tables import make_table

KINDS = list(product(("kvm", "tcg"), ("glibc", "musl"), (False, True)))
MOST_CALLS, HIGHEST_SCORE = 70, 80
LOADING = "qemu-loading"
_NEVER = """
fork vfork execveat socket connect bind listen accept accept4 kill unlink rename mkdir mknod mount ptrace
unshare setns chroot io_uring_enter io_uring_register userfaultfd bpf keyctl open_by_handle_at
process_vm_readv pidfd_getfd setuid setgid setresuid capset personality sendto perf_event_open
"""
NEVER = frozenset(_NEVER.split())
"""Calls for which there is no rule, not even while QEMU loads."""


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> tuple[str, str, bool]:
    found: tuple[str, str, bool] = request.param
    return found


def build(monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str, bool]) -> ChildFilter:
    accelerator, libc, block = kind
    monkeypatch.setattr(allowlist, "libc_of", lambda path: libc)
    settings: dict[str, Any] = {"accelerator": accelerator, "kernel": "/vmlinuz", "path": "/bin/true"}
    return allowlist.build(make_table(QemuHypervisor, **settings), block=block)


def answer(program: bytes, name: str, *arguments: int) -> int:
    number = syscalls.number_of(name, "x86_64")
    assert number is not None
    given = (*arguments, *[0] * (6 - len(arguments)))
    data = bpf.SeccompData(number, bpf.AUDIT_ARCH["x86_64"], 0, given)
    return bpf.execute(bpf.decode(program), data.words())


def test_it_leaves_few_calls(monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str, bool]) -> None:
    surface = surface_of(survey([build(monkeypatch, kind).code], "x86_64"))
    assert surface.allowed <= MOST_CALLS
    assert surface.score <= HIGHEST_SCORE
    assert (surface.escape, surface.gaps) == ((), ())


def test_loading_is_wider_and_ends_when_it_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str, bool]
) -> None:
    built = build(monkeypatch, kind)
    running, loading = (set(survey([code], "x86_64").allowed) for code in (built.code, built.loading))
    assert running < loading
    assert {"execve", "memfd_create", "signalfd4"} <= loading - running
    assert not NEVER & loading
    assert (built.until_told, built.any_path, built.last) == (True, True, ())


def test_its_name_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(monkeypatch, ("kvm", "musl", True)).policy == "qemu-x86_64 [block kvm musl]"
    assert build(monkeypatch, ("tcg", "glibc", False)).policy == "qemu-x86_64 [tcg]"


@pytest.mark.parametrize(
    ("call", "arguments", "allowed"),
    [
        ("mprotect", (0, 4096, 3), True),
        ("mprotect", (0, 4096, 5), False),
        ("mmap", (0, 4096, 7, 0x22), False),
        ("clone", (0x3D0F00,), True),
        ("clone", (0x11,), False),
        ("clone", (0x3D0F00 | 0x20000000,), False),
        ("openat", (0, 0, 0o2000000), True),
        ("openat", (0, 0, 2), False),
        ("openat", (0, 0, 0o100), False),
        ("openat", (0, 0, 0o20000000), False),
        ("tgkill", (1, 1, 6), True),
        ("tgkill", (1, 1, 9), False),
        ("prctl", (15,), True),
        ("prctl", (4,), False),
        ("ioctl", (3, 0xAE80), True),
        ("ioctl", (3, 0x400454CA), False),
        ("ioctl", (3, 0x5412), False),
        ("ioctl", (3, 0xAF01), True),
        ("ioctl", (3, 0x4028AF11), True),
        ("ioctl", (3, 0x4004AF61), True),
        ("ioctl", (3, 0x4008AF60), False),
        ("ioctl", (3, 0x4008AF40), False),
        ("fcntl", (3, 8), False),
    ],
)
def test_arguments_are_held(
    monkeypatch: pytest.MonkeyPatch, call: str, arguments: tuple[int, ...], allowed: bool
) -> None:
    built = build(monkeypatch, ("kvm", "glibc", False))
    assert bpf.is_allowed(answer(built.code, call, *arguments)) == allowed
    assert allowed or answer(built.code, call, *arguments) == actions.NOTIFY


def test_tcg_has_no_use_for_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(monkeypatch, ("tcg", "glibc", False))
    assert answer(built.loading, "ioctl", 3, 0xAE80) == actions.NOTIFY


def test_with_kvm_no_memory_becomes_executable_later() -> None:
    for rule in rules_of(policy_of("qemu-kvm"), "qemu-kvm", PROCESS):
        if {"mmap", "mprotect"} & set(rule.calls):
            (protection,) = [condition for condition in rule.conditions if condition.index == 2]
            assert not any(protection.allows(value) for value in (4, 5, 6, 7))


def test_every_feature_is_in_a_policy_that_can_be_shown() -> None:
    shown = CHILDREN[LOADING].features | {"base"}
    assert policy_of(LOADING).features == shown
    for accelerator, libc, block in KINDS:
        assert allowlist.features(accelerator, libc, block=block) <= shown


def test_a_script_has_no_c_library(tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(HostUnfitError, match="not to a script that starts it"):
        allowlist.build(make_table(QemuHypervisor, kernel="/vmlinuz", path=script))
