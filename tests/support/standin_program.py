"""Programs that stand in for a VMM, written where a test wants them, and what they were asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent


class StandInProgram:
    """An executable that behaves as `standin_vmm` says.

    directory: where it is written. record: where its record is, if not there, for a program that sees nothing
    of the host but itself and may write in one place only.
    """

    def __init__(self, directory: Path, kind: str, mode: str = "", record: Path | None = None) -> None:
        self.path = directory / f"{kind}-standin"
        self._record = record or directory / "record.jsonl"
        _write(self.path, f"main({kind!r}, {mode!r}, {str(self._record)!r})\n", kind)

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
standin = StandIn("virtiofsd", {mode!r}, "")
standin.sealed = True
standin.filter()
time.sleep(600)
"""


def write_virtiofsd(directory: Path, mode: str = "") -> Path:
    """Write a program that is there under a filter, and serves nothing. mode: as of a StandIn."""
    path = directory / "virtiofsd"
    _write(path, FAKE_VIRTIOFSD.format(mode=mode), "announce_submounts")
    return path


def _write(path: Path, action: str, comment: str) -> None:
    """Write a program that needs nothing but itself: what `standin_vmm` has, and then an action."""
    text = (SUPPORT / "standin_vmm.py").read_text()
    path.write_text(f"#!{sys.executable} -IS\n# {comment}\n{text}\n\n{action}")
    path.chmod(0o755)
