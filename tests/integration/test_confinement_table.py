"""kata-ctl confinement on a live pod: it is enough, and docs/threat-model.md says exactly the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confinement_reports import assert_on_page, confinement, process_of, report_of, roles_of
from kata_runtime.broker import pod_confinement
from kata_runtime.ctl import confinement_page
from kata_runtime.ctl.running import running_sandboxes
from kata_runtime.syscalls import landlock_version
from node import FOREVER, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]


def test_each_process_of_a_pod_on_qemu_is_what_the_page_says(node: Node) -> None:
    with node.running(*FOREVER) as client:
        report = report_of(client.container)
        text = confinement(client.container).stdout
    roles = {"shim", "broker", "virtiofsd", "init", "qemu"}
    assert roles_of(report) == roles
    assert confinement_page.differences(report) == []
    shim = process_of(report, "shim")
    assert shim["reach"] == dict.fromkeys(("open", "connect", "mount", "run"), "nothing")
    assert shim["seccomp"]["surface"]["allowed"] == 31
    assert process_of(report, "qemu")["mounts"]["writable"] == []
    assert [owned["role"] for owned in report["owned"]] == ["shim", "qemu"]
    assert all(owned["score"] < 300 for owned in report["owned"])
    assert "a guest that owns shim: " in text
    assert_on_page(report)


def test_a_host_that_has_what_is_required_runs_pods_without_a_warning(node: Node) -> None:
    path = node.configuration("required", required_confinement=["landlock", "cgroup"])
    if landlock_version() == 0:
        pytest.skip("this kernel has no Landlock")
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        assert report_of(client.container)["verified"]["lacking"] == {}


def test_who_is_not_what_was_verified_is_named(node: Node) -> None:
    with node.running(*FOREVER) as client:
        sandbox = next(one for one in running_sandboxes() if one.id == client.container)
        record = Path(sandbox.directory) / pod_confinement.RECORD
        verified = json.loads(record.read_text())
        user = verified["user"]
        record.write_text(json.dumps({**verified, "user": user + 1}))
        report = report_of(client.container, status=1)
        weaker = {process["role"]: process["weaker"] for process in report["processes"] if process["weaker"]}
        assert weaker.keys() == {"shim", "init", "qemu"}
        numbers = " ".join([str(user)] * 4)
        assert weaker["shim"] == [{"cell": "user", "reason": f"has the user {numbers}, and not {user + 1}"}]
        assert f"! weaker        it has the user {numbers}" in confinement(client.container).stdout
