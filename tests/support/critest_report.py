"""What critest has reported, and what docs/critest.md says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PASSED, SKIPPED, INTERRUPTED = "passed", "skipped", "interrupted"
_ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<reason>(?:containerd (?P<version>\d+\.\d+): )?.+) \|$")


@dataclass(frozen=True, slots=True)
class Spec:
    """One spec. state: "passed", "skipped", or how it failed. reason: the first line of its failure."""

    name: str
    state: str
    reason: str


def read(text: str) -> list[Spec]:
    """The specs that were run or that critest itself skipped, of a report in Ginkgo's JSON."""
    found = []
    for suite in json.loads(text):
        for report in suite["SpecReports"] or ():
            if report["LeafNodeType"] != "It":
                continue
            failure = report.get("Failure") or {}
            message = " ".join(str(failure.get("Message", "")).split())
            if report["State"] == INTERRUPTED or (report["State"] == SKIPPED and not message):
                continue  # broken off, or left out: on the command line, or behind what was broken off
            names = (*(report["ContainerHierarchyTexts"] or ()), report["LeafNodeText"])
            found.append(Spec(" ".join(names).removeprefix("[k8s.io] "), report["State"], message))
    return found


def broken_off(text: str) -> str:
    """Why critest has not come to its end, as it says; nothing where it has."""
    return "; ".join(
        reason for suite in json.loads(text) for reason in suite["SpecialSuiteFailureReasons"] or ()
    )


def merge(runs: Iterable[Sequence[Spec]]) -> list[Spec]:
    """The specs of several runs, each as the last of them has it."""
    return list({spec.name: spec for run in runs for spec in run}.values())


def left_out(specs: Iterable[Spec]) -> str:
    """A regular expression, as critest takes it, for what has passed or was skipped by the suite."""
    names = [re.escape(spec.name) for spec in specs if spec.state in (PASSED, SKIPPED)]
    return f" ({'|'.join(names)})$" if names else ""


def read_list(page: str, version: str) -> dict[str, str]:
    """The specs that a page says do not pass, with the reason: the rows whose first cell is in backquotes.

    version: of containerd, such as "1.6". A reason that begins with another one does not count.
    """
    rows = filter(None, (_ROW.match(line) for line in page.splitlines()))
    return {row["name"]: row["reason"] for row in rows if row["version"] in (None, version)}


def describe(specs: Sequence[Spec], known: Mapping[str, str]) -> tuple[str, bool]:
    """A table of what does not pass, and whether all of it, and nothing else that was run, is known."""
    failed = [spec for spec in specs if spec.state not in (PASSED, SKIPPED)]
    passed = [spec for spec in specs if spec.state == PASSED]
    skipped = len(specs) - len(failed) - len(passed)
    new = [spec for spec in failed if spec.name not in known]
    mended = [spec.name for spec in passed if spec.name in known]
    lines = [f"{len(passed)} passed, {len(failed)} failed ({len(new)} of them not listed), {skipped} skipped"]
    if failed:
        lines += ["", "| spec | listed | reason |", "|---|---|---|"]
        lines += [f"| {s.name} | {known.get(s.name, 'no')} | {_short(s.reason)} |" for s in failed]
    lines += [f"listed, and passes: {name}" for name in mended]
    return "\n".join(lines), not new and not mended


def _short(text: str) -> str:
    return (text if len(text) <= 300 else text[:297] + "...").replace("|", "/")
