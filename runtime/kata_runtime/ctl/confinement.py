"""`kata-ctl confinement [SANDBOX]`: what each process of a pod is on the host, and whether that is enough."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from kata_runtime.ctl import running
from kata_runtime.ctl.seccomp import FAULTS, GOOD, reporting

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "confinement",
        help="show what each process of a pod is on the host",
        description="Print for each process of the running sandboxes what the kernel reports of it: user, "
        "capabilities, no_new_privs, whether it may be dumped, seccomp, namespaces, root directory, cgroup, "
        "limits and descriptors; and what a guest reaches on the host that owns the shim or the VMM. Each "
        "process is held to what it must be at least, which its broker has verified before the guest ran.",
        epilog="Landlock is reported by no kernel for another process: what is shown of it is what the shim "
        "found when it tried to open a file, before the guest ran. score: see docs/seccomp.md. Exit status: "
        "0 all is as it must be, 1 something is weaker, 2 there is no such sandbox.",
    )
    parser.add_argument("sandbox", nargs="?", default="", help="only this sandbox: its id, or a prefix of it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=reporting(run))


def run(arguments: argparse.Namespace) -> int:
    """Print what there is of the sandboxes and return the exit status."""
    from kata_runtime.ctl import confinement_report, confinement_text
    from kata_runtime.ctl.seccomp_status import Inspector

    inspector = Inspector()
    found = running.chosen(arguments.sandbox)
    reports = [confinement_report.report(sandbox, inspector) for sandbox in found]
    as_text = "\n\n".join(map(confinement_text.text, reports))
    print(json.dumps(reports, indent=2) if arguments.json else as_text)
    return FAULTS if any(process["weaker"] for one in reports for process in one["processes"]) else GOOD
