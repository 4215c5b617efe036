"""What the kernel reports of the shim's user and capabilities, before the guest runs."""

from __future__ import annotations

import os

SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def find_privilege(pid: int, user: int) -> str | None:
    """Say what a thread of a process has that one of this user, without capabilities, has not.

    Raises OSError: the process has exited.
    """
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as file:
            fields = (line.partition(":") for line in file)
            reason = _find({name: value.strip() for name, _, value in fields}, user)
        if reason is not None:
            return f"thread {tid} {reason}"
    return None


def _find(status: dict[str, str], user: int) -> str | None:
    for name in ("Uid", "Gid"):
        if set(status[name].split()) != {str(user)}:
            return f"has {name} {' '.join(status[name].split())}, not {user}"
    if status["Groups"]:
        return f"has the groups {status['Groups']}"
    for name in SETS:
        if int(status[name], 16):
            return f"has capabilities: {name} {status[name]}"
    return None
