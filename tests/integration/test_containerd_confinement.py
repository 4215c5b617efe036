"""The confinement that was configured is the one in force, as the kernel says it, thread by thread."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node import FOREVER, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]


def threads_of(sandbox: str, role: str) -> list[dict[str, Any]]:
    """What `kata-ctl seccomp status` says of one process of a sandbox."""
    kata_ctl = str(Path(sys.executable).parent / "kata-ctl")
    command = [kata_ctl, "seccomp", "status", "--json", sandbox]
    (report,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert report["id"] == sandbox
    return next(process["threads"] for process in report["processes"] if process["name"] == role)


def inherited_filters() -> int:
    """How many filters every process here is under already, as in some containers."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return int(fields.get("Seccomp_filters", 0))


def test_as_shipped_every_thread_of_the_machine_is_filtered(node: Node) -> None:
    with node.running(*FOREVER) as client:
        threads = threads_of(client.container, "qemu")
        assert len(threads) > 1
        assert any(thread["name"].startswith("CPU 0") for thread in threads)
        for thread in threads:
            assert (thread["mode"], thread["mode_name"]) == (2, "filter"), thread
            assert thread["filters"] > inherited_filters()
            assert thread["no_new_privs"] is True
        assert warnings_of(node, client.container) == []


def test_shim_and_machine_are_the_pods_user_without_capabilities(node: Node) -> None:
    with node.running(*FOREVER) as client:
        pids = node.pids(client.container)
        users = set()
        for role in ("shim", "qemu", "init"):
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pids[role]}/status").read_text().splitlines()
            )
            users.update(status["Uid"].split() + status["Gid"].split())
            assert status["Groups"].split() == []
            sets = {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
            assert sets == {"0" * 16}, role
            assert status["NoNewPrivs"].strip() == "1"
        assert len(users) == 1
        assert int(users.pop()) >= 1_900_000_000


@pytest.mark.skipif(inherited_filters() > 0, reason="every process here is under a filter already")
def test_turned_off_it_runs_with_a_warning_and_without_a_filter(node: Node) -> None:
    path = node.configuration("unconfined", seccompsandbox="")
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        assert {thread["mode"] for thread in threads_of(client.container, "qemu")} == {0}
        warnings = warnings_of(node, client.container)
        assert any('qemu runs unconfined: seccompsandbox = \\"\\"' in line for line in warnings)
        assert any(f"{path}:" in line and "QEMU runs unconfined" in line for line in warnings)


def warnings_of(node: Node, sandbox: str) -> list[str]:
    """What the shim of one sandbox has warned of, but that it waited: that depends on the host."""
    lines = [line for line in node.log().splitlines() if line.endswith(f"sandbox={sandbox}")]
    return [line for line in lines if "level=warning" in line and "still waits after" not in line]
