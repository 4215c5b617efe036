"""`kata-ctl seccomp status [SANDBOX]`: the kernel's word about every thread of every sandbox."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kata_hypervisor.seccomp.proof import MODES, ThreadConfinement, read_threads
from kata_runtime.sandboxes import RecordedSandbox, running_sandboxes


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `seccomp` command."""
    parser = subparsers.add_parser("seccomp", help="show how processes are confined")
    actions = parser.add_subparsers(dest="action", required=True)
    status = actions.add_parser(
        "status", help="seccomp mode and filters of each thread of the running sandboxes"
    )
    status.add_argument("sandbox", nargs="?", help="only this sandbox: its id or the beginning of it")
    status.add_argument("--json", action="store_true", help="print JSON instead of tables")
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    wanted = arguments.sandbox or ""
    found = [sandbox for sandbox in running_sandboxes() if sandbox.id.startswith(wanted)]
    if not found:
        what = (
            f"no running sandbox whose id begins with {wanted!r}"
            if wanted
            else "no sandbox is running on this host"
        )
        print(f"kata-ctl: {what}", file=sys.stderr)
        return 1
    reports = [_report(sandbox) for sandbox in found]
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return 0
    for report in reports:
        print(f"sandbox {report['id']} (namespace {report['namespace']})")
        for process in report["processes"]:
            print(f"  {process['name']}, pid {process['pid']}")
            for thread in process["threads"]:
                mode = f"mode {thread['mode']} ({thread['mode_name']}), {thread['filters']} filters"
                print(f"    {thread['tid']:>8}  {thread['name']:<16}  {mode}")
    return 0


def _report(sandbox: RecordedSandbox) -> dict[str, Any]:
    processes = []
    for process in sandbox.processes:
        try:
            threads = read_threads(process.pid)
        except ProcessLookupError:
            continue
        processes.append({"name": process.name, "pid": process.pid, "threads": [_thread(t) for t in threads]})
    return {"id": sandbox.id, "namespace": sandbox.namespace, "processes": processes}


def _thread(thread: ThreadConfinement) -> dict[str, object]:
    return {
        "tid": thread.tid,
        "name": thread.name,
        "mode": thread.mode,
        "mode_name": MODES.get(thread.mode, "unknown"),
        "filters": thread.filters,
        "no_new_privs": thread.no_new_privs,
    }
