"""On which CPUs of the host the threads of a process may run, as the kernel reports it."""

from __future__ import annotations

import re
from pathlib import Path


def cpus_of(pid: int) -> dict[str, str]:
    """The CPUs that each thread of a process may run on, by its name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        allowed = re.search(r"^Cpus_allowed_list:\t(.*)$", status, re.MULTILINE)
        assert allowed
        found[(task / "comm").read_text().strip()] = allowed[1]
    return found
