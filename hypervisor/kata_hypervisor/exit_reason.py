"""Why a machine's processes ended, as one line that says what to do where that is known."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from kata_hypervisor.host import ExitStatus
from kata_hypervisor.output_tail import LINE_LIMIT, Tail

Hints = tuple[tuple[re.Pattern[str], str], ...]
"""What a VMM's words contain -> what the operator can do."""

PANIC = re.compile(r"(?<!end )Kernel panic - (not syncing: .*)")


def first_failure(vmm: str, helper: str, ended: Mapping[str, ExitStatus]) -> str:
    """Of the processes that ended together, name the one whose end explains the other's.

    A helper ends with status 0 when the VMM is gone; the VMM fails when its helper does.
    """
    first, other = ended.get(vmm), ended.get(helper)
    if first is None:
        return helper
    if other is None or other.code == 0 or first.signal is not None:
        return vmm
    return helper


def describe(
    process: str, status: ExitStatus, stderr: Tail, console: Tail, *, running: bool, hints: Hints
) -> str:
    """Return one line: which process, how it ended, its last word, and what to do.

    running: whether the guest had been started. A guest's panic that made the VMM end well is the reason.
    """
    panics = PANIC.findall(console.text)
    if running and status.code == 0:
        return f"the guest's kernel panicked: {panics[-1][:LINE_LIMIT]}" if panics else "the guest shut down"
    when = "" if running else " before the guest was ready"
    parts = [f"{process} ended{when}: {status}"]
    if stderr.last_line and status.signal != signal.SIGKILL:  # who is killed says nothing
        parts.append(stderr.last_line)
    elif not running and status.signal is None:
        parts.append("it said nothing")
    if status.signal == signal.SIGKILL:
        hint: str | None = "the kernel's out-of-memory killer, if nobody sent it: see dmesg"
    else:
        text = stderr.text + "\n" + console.text
        hint = next((hint for pattern, hint in hints if pattern.search(text)), None)
    return ": ".join(parts) + (f" ({hint})" if hint else "")
