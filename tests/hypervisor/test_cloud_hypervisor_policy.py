"""Cloud Hypervisor's policy: how little it leaves to its first thread, for every C library."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_hypervisor.cloud_hypervisor import allowlist
from kata_hypervisor.driver_policy import CHILDREN, policy_of
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.seccomp import actions, bpf, syscalls
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.score import PUBLISHED, surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_hypervisor.seccomp.verify import verify_policy

BUILD = allowlist.build  # before a fixture of all tests here lets scripts stand in
LIBRARIES = ("glibc", "musl")
MOST_CALLS, HIGHEST_SCORE = 80, 104
_NEVER = """
fork vfork execveat kill rename mkdir mknod mount ptrace unshare setns chroot io_uring_enter io_uring_register
userfaultfd bpf keyctl open_by_handle_at process_vm_readv pidfd_getfd setuid setgid setresuid capset
personality perf_event_open landlock_restrict_self chmod chown symlink link
"""
NEVER = frozenset(_NEVER.split())
"""Calls for which there is no rule, not even while it loads."""


@pytest.fixture(params=LIBRARIES)
def libc(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def build(monkeypatch: pytest.MonkeyPatch, libc: str) -> ChildFilter:
    monkeypatch.setattr(allowlist, "libc_of", lambda path: libc)
    return BUILD(Path("/bin/true"))


def allows(program: bytes, name: str, *arguments: int) -> bool:
    number = syscalls.number_of(name, "x86_64")
    assert number is not None
    data = bpf.SeccompData(number, bpf.AUDIT_ARCH["x86_64"], 0, (*arguments, *[0] * (6 - len(arguments))))
    answer = bpf.execute(bpf.decode(program), data.words())
    assert bpf.is_allowed(answer) or answer == actions.NOTIFY
    return bpf.is_allowed(answer)


def test_it_leaves_few_calls(monkeypatch: pytest.MonkeyPatch, libc: str) -> None:
    surface = surface_of(survey([build(monkeypatch, libc).code], "x86_64"))
    assert surface.allowed <= MOST_CALLS
    assert surface.score <= HIGHEST_SCORE
    assert (surface.escape, surface.gaps) == ((), ())


def test_loading_is_wider_and_ends_when_it_is_told(monkeypatch: pytest.MonkeyPatch, libc: str) -> None:
    built = build(monkeypatch, libc)
    running, loading = (set(survey([code], "x86_64").allowed) for code in (built.code, built.loading))
    assert running < loading
    assert {"execve", "memfd_create", "bind", "listen"} <= loading - running
    assert not NEVER & loading
    assert (built.until_told, built.any_path, built.last) == (True, True, ())


def test_its_name_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(monkeypatch, "glibc").policy == "cloud-hypervisor-x86_64"
    assert build(monkeypatch, "musl").policy == "cloud-hypervisor-x86_64 [musl]"


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
        ("openat", (0, 0, 0o2001101), True),
        ("openat", (0, 0, 0o2000002), True),
        ("openat", (0, 0, 0o20200000 | 2), False),
        ("socket", (1, 1, 0), True),
        ("socket", (2, 2, 0), False),
        ("socket", (16, 3, 0), False),
        ("tgkill", (1, 1, 34), True),
        ("tgkill", (1, 1, 9), False),
        ("prctl", (15,), True),
        ("prctl", (4,), False),
        ("ioctl", (3, 0xAE80), True),
        ("ioctl", (3, 0x400454D0), True),
        ("ioctl", (3, 0x400454CA), False),
        ("ioctl", (3, 0x5412), False),
        ("ioctl", (3, 0x3B71), False),
        ("fcntl", (3, 8), False),
        ("seccomp", (1,), True),
        ("seccomp", (3,), False),
    ],
)
def test_arguments_are_held(
    monkeypatch: pytest.MonkeyPatch, call: str, arguments: tuple[int, ...], allowed: bool
) -> None:
    assert allows(build(monkeypatch, "glibc").code, call, *arguments) == allowed


@pytest.mark.parametrize("stage", ["code", "loading"])
@pytest.mark.parametrize("call", ["clone3", "io_uring_setup"])
def test_what_no_filter_sees_is_not_there(monkeypatch: pytest.MonkeyPatch, call: str, stage: str) -> None:
    number = syscalls.number_of(call, "x86_64")
    assert number is not None
    data = bpf.SeccompData(number, bpf.AUDIT_ARCH["x86_64"], 0, (0,) * 6)
    code: bytes = getattr(build(monkeypatch, "glibc"), stage)
    assert actions.describe(bpf.execute(bpf.decode(code), data.words())) == "errno ENOSYS"


def test_the_same_work_is_in_every_c_librarys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    code = build(monkeypatch, "musl").code
    for call, arguments in (("open", (0, 0o2000000)), ("clone", (0x7D0F00,)), ("tkill", (1, 35))):
        assert allows(code, call, *arguments)


def test_each_rule_holds_on_this_kernel() -> None:
    report = verify_policy(policy_of("cloud-hypervisor-loading"))
    assert report.cases
    assert [str(case) for case in report.failed] == []


def test_every_feature_is_in_a_policy_that_can_be_shown() -> None:
    shown = CHILDREN["cloud-hypervisor-loading"].features | {"base"}
    assert policy_of("cloud-hypervisor-loading").features == shown
    for libc in LIBRARIES:
        assert allowlist.features(libc) <= CHILDREN["cloud-hypervisor"].features <= shown


def test_less_than_it_leaves_to_itself(monkeypatch: pytest.MonkeyPatch, libc: str) -> None:
    (own,) = [one for one in PUBLISHED if (one.name, one.unit) == ("Cloud Hypervisor", "process")]
    surface = surface_of(survey([build(monkeypatch, libc).code], "x86_64"))
    assert surface.score < own.score / 2


def test_a_script_has_no_c_library(tmp_path: Path) -> None:
    script = tmp_path / "cloud-hypervisor"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(HostUnfitError, match="not to a script that starts it"):
        BUILD(script)
