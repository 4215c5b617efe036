"""Programs that stand in for a VMM, written where a test wants them, and what they were asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent


class StandInProgram:
    """An executable that behaves as `standin_vmm` says. directory: where it is written."""

    def __init__(self, directory: Path, kind: str, mode: str = "") -> None:
        self.path = directory / f"{kind}-standin"
        self._record = directory / "record.jsonl"
        self.path.write_text(
            f"#!{sys.executable} -IS\n"
            "import sys\n"
            f"sys.path.insert(0, {str(SUPPORT)!r})\n"
            "import standin_vmm\n"
            f"standin_vmm.main({kind!r}, {mode!r}, {str(self._record)!r})\n"
        )
        self.path.chmod(0o755)

    @property
    def record(self) -> list[dict[str, Any]]:
        """What was written down: its arguments first, then every request with its answer."""
        if not self._record.exists():
            return []
        return [json.loads(line) for line in self._record.read_text().splitlines()]

    @property
    def arguments(self) -> list[str]:
        """The arguments that it was started with."""
        found: list[str] = self.record[0]["argv"]
        return found

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of each request."""
        return [(entry["method"], entry["path"]) for entry in self.record if "method" in entry]


FAKE_VIRTIOFSD = """\
#!/bin/sh
# announce_submounts
exec sleep 600
"""


def write_virtiofsd(directory: Path) -> Path:
    """Write a program that is there, and serves nothing."""
    path = directory / "virtiofsd"
    path.write_text(FAKE_VIRTIOFSD)
    path.chmod(0o755)
    return path
