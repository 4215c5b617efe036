"""The tables of docs/threat-model.md: what each process must be at least, and what was seen of live pods.

    python -m kata_runtime.ctl.confinement_page docs/threat-model.md [REPORT...]

writes the first table from the declared rows. REPORT is what `kata-ctl confinement --json` printed; its pods
take the place of those of their kind in the second table, and the exit status is 1 when a process of them is
otherwise than its row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kata_runtime.confinement.facts import UNLIMITED
from kata_runtime.confinement.reach import VERBS
from kata_runtime.confinement.rows import ALL, BROKER, POD, ROOT, ROWS, SHIM, Row
from kata_runtime.ctl.confinement_report import vmm_roles

ROWS_BLOCK, SEEN_BLOCK = "expected rows", "pods that were seen"
_BEGIN, _END = "<!-- generated: {} -->", "<!-- end of {} -->"


def expected_table(rows: dict[str, Row] = ROWS) -> str:
    """What each role must be at least."""
    head = ("process", "user", "capabilities", "no_new_privs", "core dumps", "namespaces of its own")
    lines = [_line([*head, "root directory", "files it may write", "seccomp filter"]), _line(["---"] * 9)]
    return "\n".join([*lines, *(_line([row.title, *cells(row)]) for row in rows.values())])


def cells(row: Row) -> list[str]:
    """A row in words."""
    dumps = "none" if row.core else "as its user"
    if not row.dumpable:
        dumps = "none, not dumpable"
    return [
        f"{row.user}'s" if row.user == ROOT else row.user,
        "all" if row.capabilities == ALL else ", ".join(sorted(row.capabilities)) or "none",
        "yes" if row.no_new_privs else "no",
        dumps,
        ", ".join(row.own) or "none",
        ("its own" if row.root else "the host's") + (", which Landlock denies it" if row.landlock else ""),
        {"none": "none", "bounded": "of its guest's size", "any": "any"}[row.files],
        row.seccomp,
    ]


def differences(report: dict[str, Any]) -> list[str]:
    """Say of each process of a report what it is otherwise than the table says: weaker, or stricter."""
    found = []
    for process in report["processes"]:
        seen, declared = cells(row_seen(process, report)), cells(ROWS[process["role"]])
        if seen != declared:
            found.append(f"{process['role']} is {' | '.join(seen)}, and its row says {' | '.join(declared)}")
    return found


def row_seen(process: dict[str, Any], report: dict[str, Any]) -> Row:
    """The strictest row that a process of a report has. Its filter is of the kind that its row names."""
    users = {*process["users"], *process["groups"]}
    held = {name for names in process["capabilities"].values() for name in names}
    declared = ROWS[process["role"]]
    if process["role"] == BROKER and held <= declared.capabilities:
        held = set(declared.capabilities)  # which of them it has depends on the pod
    return Row(
        process["title"],
        user=POD if users == {report["verified"]["user"]} else ROOT,
        capabilities=ALL if held >= set(report["privileged"]) else frozenset(held),
        no_new_privs=process["no_new_privs"],
        dumpable=process["dumpable"] is not False or process["role"] != SHIM,
        core=process["limits"]["core"] == [0, 0],
        own=tuple(name for name in _ORDER if process["namespaces"].get(name) == "own"),
        root=process["root"] == "own",
        seccomp=_filter(process, report, declared),
        landlock=bool(process["landlock"]),
        files=_files(process["limits"]["fsize"][1], declared),
    )


def _files(size: int, declared: Row) -> Any:
    if size == UNLIMITED:
        return "any"
    # Whether a bounded one has any depends on the pod.
    return "none" if size == 0 and declared.files != "bounded" else "bounded"


_ORDER = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")


def _filter(process: dict[str, Any], report: dict[str, Any], declared: Row) -> Any:
    if process["seccomp"]["filters"] <= report["verified"]["inherited"]:
        return "none"
    return declared.seccomp if declared.seccomp != "none" else "one"


IN_PROCESS, UNIKERNEL = "dragonball", "dragonball, of a unikernel"
KINDS = (*(row.title for role, row in ROWS.items() if role in vmm_roles()), IN_PROCESS, UNIKERNEL)
"""What pods run in, in the order of the table."""


def kind_of(report: dict[str, Any]) -> str:
    """What a report's pod runs in: the title of its VMM, or of the machine in the shim's own process."""
    roles = [process["role"] for process in report["processes"]]
    for owned in report["owned"]:
        if owned["role"] != SHIM:
            return ROWS[owned["role"]].title
    return IN_PROCESS if "virtiofsd" in roles else UNIKERNEL


class Seen(NamedTuple):
    """What a guest reaches that owns a process of a pod.

    numbers: as NUMBERS says. reach: what others do for it, each with the word of VERBS for it.
    """

    numbers: tuple[str, ...]
    reach: tuple[tuple[str, str], ...]


Owner = tuple[str, str]
"""A process that a guest may own: its role, and what its pod runs in."""
NUMBERS = ("calls", "score by itself", "score of the union")
_HEAD, _YES = "a guest that owns", "yes"


def seen_of(report: dict[str, Any]) -> dict[Owner, Seen]:
    """What a guest reaches in the pod of a report, by the process that it owns."""
    found = {}
    for owned in report["owned"]:
        numbers = (str(owned["calls"]), f"{owned['alone']:g}", f"{owned['score']:g}")
        reach = tuple((verb, what) for verb in VERBS for what in owned["reach"].get(verb, ()))
        found[owned["role"], kind_of(report)] = Seen(numbers, reach)
    return found


def read_seen(table: str) -> dict[Owner, Seen]:
    """What a page's table says. Raises ValueError: it is no such table."""
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    numbers, reach = lines[: len(NUMBERS)], lines[len(NUMBERS) :]
    found = {}
    for column, title in enumerate(head[1:], 1):
        role, _, kind = title.partition(" of ")
        said = [line[0].removeprefix("can ").partition(": ") for line in reach if line[column] == _YES]
        found[role, kind] = Seen(
            tuple(line[column] for line in numbers), tuple((verb, what) for verb, _, what in said)
        )
    return found


def seen_table(seen: Mapping[Owner, Seen]) -> str:
    """A column for each process that a guest may own: its numbers, and whether it reaches what any does."""
    owners = sorted(seen, key=lambda owner: KINDS.index(owner[1]))  # the shim stays the first of its pod
    rows = [[_HEAD, *(f"{role} of {kind}" for role, kind in owners)], ["---"] * (1 + len(owners))]
    rows += ([title, *(seen[o].numbers[place] for o in owners)] for place, title in enumerate(NUMBERS))
    reached = dict.fromkeys(one for owner in owners for one in seen[owner].reach)
    for verb in VERBS:
        for what in (what for one, what in reached if one == verb):
            answers = (_YES if (verb, what) in seen[owner].reach else "-" for owner in owners)
            rows.append([f"can {verb}: {what}", *answers])
    return "\n".join(map(_line, rows))


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def block(page: str, name: str) -> str:
    """What a page has between the marks of a block. Raises ValueError: it has none."""
    begin, end = _BEGIN.format(name), _END.format(name)
    return page[page.index(begin) + len(begin) : page.index(end)].strip("\n")


def replace(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of a block. Raises ValueError: it has none."""
    begin, end = _BEGIN.format(name), _END.format(name)
    first, last = page.index(begin) + len(begin), page.index(end)
    return f"{page[:first]}\n{text}\n{page[last:]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("reports", type=Path, nargs="*", metavar="REPORT")
    arguments = parser.parse_args(argv)
    reports = [one for path in arguments.reports for one in json.loads(path.read_text(encoding="utf-8"))]
    text = replace(arguments.page.read_text(encoding="utf-8"), ROWS_BLOCK, expected_table())
    seen = {owner: found for report in reports for owner, found in seen_of(report).items()}
    kinds = {kind for _, kind in seen}
    kept = {o: found for o, found in read_seen(block(text, SEEN_BLOCK)).items() if o[1] not in kinds}
    text = replace(text, SEEN_BLOCK, seen_table(kept | seen))
    lines = [line for report in reports for line in differences(report)]
    arguments.page.write_text(text, encoding="utf-8")
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
