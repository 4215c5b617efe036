"""From rules to a BPF program, by libseccomp: the only module that knows pyseccomp.

Its gaps are closed here. Importing it runs ldconfig; names that it does not know become -1; a call of another
architecture ends a thread in place of the process; a program could only be loaded, not had as bytes.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from kata_hypervisor.errors import PolicyError, SealError
from kata_hypervisor.seccomp import actions, syscalls
from kata_hypervisor.seccomp.program import Program
from kata_hypervisor.seccomp.rules import Condition, Rule

_SONAMES = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}
_OPERATORS = {"ne": 1, "lt": 2, "le": 3, "eq": 4, "ge": 5, "gt": 6, "masked": 7}  # enum scmp_compare
_UNKNOWN = -1  # __NR_SCMP_ERROR
_LINEAR, _TREE = 1, 2  # values of SCMP_FLTATR_CTL_OPTIMIZE
_ARCHITECTURES = {"x86_64": "X86_64", "aarch64": "AARCH64"}


def compile_rules(
    rules: Sequence[Rule],
    default: int,
    *,
    arch: str | None = None,
    tree: bool = True,
    frequent: Sequence[str] = (),
) -> Program:
    """Compile rules into a program that answers every other call with `default`, a value of `actions`.

    A call of a foreign architecture or of x32 kills the process. Calls are taken by their number in our own
    table, so it hardly matters which of them libseccomp knows.

    arch: "x86_64" or "aarch64", this machine's by default. tree: search a call's number in a binary tree,
    else one after the other, the `frequent` ones first.

    Raises:
        PolicyError: there is no rule, one cannot be expressed, or a name in it was not bound.
        SealError: libseccomp is missing or has failed.
    """
    arch = arch or syscalls.native()
    if not rules:
        raise PolicyError("there is no rule to compile: a filter without rules is refused")
    _check_comparisons(rules)
    library = load_library()
    skipped = []
    try:
        program = _begin(library, default, arch, tree)
        for rule in rules:
            if rule.action == default:
                raise PolicyError(f"rule {rule.number} ({', '.join(rule.calls)}) has the default action")
            for call in rule.calls:
                number = _number(library, call, arch)
                if number is None or not _add(library, program, rule, call, number):
                    skipped.append(call)
        for rank, call in enumerate(frequent):
            program.syscall_priority(_number(library, call, arch), 255 - rank)
        code = _export(program)
    except OSError as error:
        raise SealError(f"cannot build a seccomp filter: libseccomp says {error.strerror}") from error
    return Program(code, tuple(dict.fromkeys(skipped)))


@cache
def load_library() -> Any:
    """Import pyseccomp without a search for its libraries, which would fork ldconfig and gcc.

    Raises:
        SealError: libseccomp is not installed.
    """
    import ctypes.util

    search = ctypes.util.find_library
    ctypes.util.find_library = _SONAMES.get  # type: ignore[assignment]
    try:
        import pyseccomp
    except (OSError, RuntimeError) as error:
        raise SealError(
            f"cannot build a seccomp filter: {error} (install libseccomp 2.5 or later: package libseccomp2)"
        ) from None
    finally:
        ctypes.util.find_library = search
    return pyseccomp


def library_version() -> tuple[int, int, int]:
    """libseccomp's version: major, minor, micro. Raises SealError when it is not installed."""
    version = load_library()._libseccomp.seccomp_version
    version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    major, minor, micro = version().contents
    return major, minor, micro


def _begin(library: Any, default: int, arch: str, tree: bool) -> Any:
    program = library.SyscallFilter(default)
    wanted = getattr(library.Arch, _ARCHITECTURES[arch])
    if wanted != library.system_arch():
        program.add_arch(wanted)
        program.remove_arch(library.system_arch())
    program.set_attr(library.Attr.ACT_BADARCH, actions.KILL_PROCESS)
    program.set_attr(library.Attr.CTL_OPTIMIZE, _TREE if tree else _LINEAR)
    return program


def _check_comparisons(rules: Sequence[Rule]) -> None:
    """Refuse what libseccomp merges wrongly before 2.6.1 (GHSA-4q85-33p6-j5g6): it may allow too much.

    That happens to comparisons other than equality, where several rules are alternatives for one call.
    """
    counts = Counter(call for rule in rules for call in rule.calls)
    for rule in rules:
        for call in rule.calls:
            if counts[call] > 1 and any(
                condition.op not in ("eq", "masked") for condition in rule.conditions
            ):
                raise PolicyError(
                    f"rule {rule.number}, {call} when {rule.when}: libseccomp cannot be trusted with a "
                    "comparison in one of several rules for a call (write eq, in or masked)"
                )


def _number(library: Any, call: str, arch: str) -> int | None:
    """The number by which libseccomp knows a call; None where this architecture has no such call."""
    number = syscalls.number_of(call, arch)
    if number is None and all(syscalls.number_of(call, other) is None for other in syscalls.ARCHITECTURES):
        raise PolicyError(f"there is no system call {call!r}")
    if number is not None and arch != syscalls.native():
        # libseccomp expects this machine's number, and translates it by the name that it knows.
        number = library.resolve_syscall(library.Arch.NATIVE, call)
        return None if number == _UNKNOWN else number
    return number


def _add(library: Any, program: Any, rule: Rule, call: str, number: int) -> bool:
    """Add a rule for one call; False when libseccomp does not know that call and refuses it."""
    arguments = [_argument(library, condition) for condition in rule.conditions]
    try:
        program.add_rule_exactly(rule.action, number, *arguments)
    except OSError as error:
        if library.resolve_syscall(library.Arch.NATIVE, call) == _UNKNOWN:
            return False
        raise PolicyError(
            f"libseccomp refuses rule {rule.number}, {call} when {rule.when}: {error.strerror}"
        ) from None
    return True


def _argument(library: Any, condition: Condition) -> Any:
    operator = _OPERATORS[condition.op]
    if condition.mask is not None:
        return library.Arg(condition.index, operator, condition.mask, condition.number)
    return library.Arg(condition.index, operator, condition.number)


def _export(program: Any) -> bytes:
    with open(os.memfd_create("seccomp filter", os.MFD_CLOEXEC), "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
