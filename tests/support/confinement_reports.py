"""What kata-ctl confinement prints of a pod, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kata_runtime.ctl import confinement_page

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
KATA_CTL = str(Path(sys.executable).parent / "kata-ctl")


def confinement(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run kata-ctl confinement to its end."""
    return subprocess.run([KATA_CTL, "confinement", *arguments], capture_output=True, text=True, check=False)


def report_of(sandbox: str, status: int = 0) -> dict[str, Any]:
    """What it prints of a sandbox as JSON, with the exit status that is expected.

    With KATA_TEST_REPORT it is printed too, in a line of its own, for `make confinement-page`: the rig
    forgets what is written to files.
    """
    done = confinement("--json", sandbox)
    assert done.returncode == status, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)
    assert report["id"] == sandbox
    if os.environ.get("KATA_TEST_REPORT"):
        print(f"\n{json.dumps([report])}")
    found: dict[str, Any] = report
    return found


def process_of(report: dict[str, Any], role: str) -> dict[str, Any]:
    """What a report has of the process in a role."""
    found: dict[str, Any] = next(process for process in report["processes"] if process["role"] == role)
    return found


def roles_of(report: dict[str, Any]) -> set[str]:
    """The roles of the processes in a report."""
    return {process["role"] for process in report["processes"]}


def assert_on_page(report: dict[str, Any]) -> None:
    """The threat model says what a guest reaches in the pod of a report.

    The numbers of a VMM depend on its version, and on what its C library calls; the shim's filter is ours.
    """
    table = confinement_page.block(PAGE.read_text(encoding="utf-8"), confinement_page.SEEN_BLOCK)
    kind = confinement_page.kind_of(report)
    said = {owner: seen for owner, seen in confinement_page.read_seen(table).items() if owner[1] == kind}
    on_page, seen = map(_stable, (said, confinement_page.seen_of(report)))
    assert on_page == seen, "KATA_TEST_REPORT=1 with pytest -s, then make confinement-page ARGS=FILE"


def _stable(
    seen: dict[confinement_page.Owner, confinement_page.Seen],
) -> dict[confinement_page.Owner, tuple[tuple[str, ...], set[tuple[str, str]]]]:
    return {
        owner: (found.numbers if owner[0] == "shim" else (), {*found.reach}) for owner, found in seen.items()
    }
