"""Filters for what stands in for a filtered program: a script, whose interpreter calls more than the program.

Like the program's own they let it leave neither by the calls of the class "escape" nor by a new process.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_hypervisor import virtiofsd
from kata_hypervisor.cloud_hypervisor import allowlist
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.score import ESCAPE

CLONE_THREAD = 0x10000


def allow_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what stands in for Cloud Hypervisor, and is no program, a wide filter; the program has its own."""
    real = allowlist.build
    monkeypatch.setattr(allowlist, "build", lambda program: _for_program(program, real))


def _for_program(program: Path, real: Callable[[Path], ChildFilter]) -> ChildFilter:
    try:
        return real(program)
    except HostUnfitError:
        return supervised()


def supervised() -> ChildFilter:
    """One that asks about what it refuses, as that of a VMM does, and ends the program for it."""
    rules = [
        Rule((*sorted(ESCAPE), "fork", "vfork"), action=actions.NOTIFY),
        Rule(("clone",), (Condition(0, "masked", 0, CLONE_THREAD),), action=actions.NOTIFY),
        Rule(("clone3",), action=actions.errno(errno.ENOSYS)),
    ]
    return ChildFilter(
        policy="wide",
        advice="none",
        code=compile_rules(rules, actions.ALLOW).code,
        loading=compile_rules([Rule(("execve",))], actions.NOTIFY).code,
        until_told=True,
        any_path=True,
    )


def allow_file_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what stands in for virtiofsd a wide filter."""
    rules = [Rule(("fork", "vfork", "clone"), action=actions.KILL_PROCESS)]
    wide = ChildFilter(policy="wide", advice="none", code=compile_rules(rules, actions.ALLOW).code)
    monkeypatch.setattr(virtiofsd, "wrapper", lambda: wide)
