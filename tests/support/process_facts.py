"""What the kernel says of a process in /proc."""

from __future__ import annotations

import os
from pathlib import Path

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NAMESPACES = ("mnt", "ipc", "uts", "pid", "net")


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def shared_namespaces(pid: int, other: int | str = "self") -> set[str]:
    """The namespaces that two processes have in common."""
    return {
        name
        for name in NAMESPACES
        if os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{other}/ns/{name}")
    }


def limit_of(pid: int, name: str) -> tuple[str, str]:
    """A resource's soft and hard limit, such as of "core file size"."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"Max {name} "))
    soft, hard, *_ = found.removeprefix(f"Max {name}").split()
    return soft, hard
