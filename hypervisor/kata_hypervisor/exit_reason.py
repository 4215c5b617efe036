"""Why a machine's processes exited, as one line that says what to do where that is known."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from kata_hypervisor.host import ExitStatus
from kata_hypervisor.output_tail import LINE_LIMIT, Tail

Hints = tuple[tuple[re.Pattern[str], str], ...]
"""What a VMM's output contains -> what the operator can do."""

PANIC = re.compile(r"(?<!end )Kernel panic - (not syncing: .*)")


def first_failure(vmm: str, helper: str, exited: Mapping[str, ExitStatus]) -> str:
    """Of the processes that exited together, name the one whose exit explains the other's.

    A helper exits with status 0 when the VMM is gone; the VMM fails when its helper does.
    """
    first, other = exited.get(vmm), exited.get(helper)
    if first is None:
        return helper
    if other is None or other.code == 0 or first.signal is not None:
        return vmm
    return helper


def kernel_panic(console: Tail) -> str | None:
    """The last panic of the guest's kernel on its console, as a sentence; None where there was none."""
    panics = PANIC.findall(console.text)
    return f"the guest's kernel panicked: {panics[-1][:LINE_LIMIT]}" if panics else None


def find_hint(hints: Hints, text: str) -> str | None:
    """What to do, by what a VMM has written."""
    return next((hint for pattern, hint in hints if pattern.search(text)), None)


def describe_exit(process: str, status: ExitStatus, stderr: Tail, *, running: bool, hint: str | None) -> str:
    """Say in one line which process exited, how, what it wrote last, and what to do.

    running: whether the guest had been started. hint: what to do, where the caller knows.
    """
    how = f"exited with status {status.code}" if status.signal is None else f"was {status}"
    line = f"{process} {how}" + ("" if running else " before the guest was ready")
    if status.signal == signal.SIGSYS and hint is None:
        hint = "its seccomp filter refuses a system call that it made; the kernel's log names it (type=1326)"
    if status.signal == signal.SIGKILL:  # a process that is killed writes nothing about it
        hint = "if nobody sent the signal, the kernel's out-of-memory killer did: see dmesg"
    elif stderr.last_line:
        line += f": {stderr.last_line}"
    elif not running and status.signal is None:
        line += ", and wrote nothing to stderr"
    return f"{line} ({hint})" if hint else line


def describe(
    process: str, status: ExitStatus, stderr: Tail, console: Tail, *, running: bool, hints: Hints
) -> str:
    """As `describe_exit`, for a VMM that exits with status 0 whatever ends its guest."""
    if running and status.code == 0:
        return kernel_panic(console) or "the guest shut down"
    hint = find_hint(hints, stderr.text + "\n" + console.text)
    return describe_exit(process, status, stderr, running=running, hint=hint)
