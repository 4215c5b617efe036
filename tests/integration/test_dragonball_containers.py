"""Containers in the runtime's own process, on a KVM that runs unmodified guests: `make test-rig`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import containerd_versions
import shipped_configuration
from confinement_reports import assert_on_page, confinement, report_of, roles_of
from held_files import held_files
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl import confinement_page
from node import FOREVER, Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(600)]

CONFIGURATION = """
[hypervisor.dragonball]
kernel = {kernel}
initrd = {initrd}
image = {image}
virtio_fs_daemon = {virtio_fs_daemon}

[runtime]
hypervisor_name = "dragonball"
agent_name = "kata"

[agent.kata]
reconnect_timeout_ms = {reconnect_timeout_ms}
"""


class DragonballNode(Node):
    """A node whose configuration selects the in-process machine."""

    def configuration(self, name: str, /, **values: shipped_configuration.Value) -> Path:
        """Write NAME.toml. See Node."""
        texts = {
            key: json.dumps(str(value) if isinstance(value, Path) else value)
            for key, value in (self._values | values).items()
        }
        path = self.root / f"{name}.toml"
        path.write_text(CONFIGURATION.format_map(texts), encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def dragonball(guest_image: Path) -> Iterator[DragonballNode]:
    """A node with the system's containerd."""
    node = DragonballNode(containerd_versions.find(containerd_versions.SYSTEM), guest_image)
    before = node.leftovers()
    try:
        node.start()
        yield node
        assert before.settle() == []
    finally:
        node.close()


def test_a_container_prints_and_ends(dragonball: DragonballNode, guest_image: Path) -> None:
    kernel = json.loads((guest_image / "manifest.json").read_text())["kernel"]
    result = dragonball.run("sh", "-c", "uname -r; cat; echo err >&2; exit 42", stdin="in\n")
    assert (result.returncode, result.stdout, result.stderr) == (42, f"{kernel}\nin\n", "err\n")


def test_one_process_holds_shim_and_machine_and_all_of_it_is_sealed(dragonball: DragonballNode) -> None:
    with dragonball.running(*FOREVER) as client:
        processes = dragonball.pids(client.container)
        assert set(processes) == {"shim", "broker", "virtiofsd", "init"}
        shim = processes["shim"]
        assert {"anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "/dev/vhost-vsock"} <= {*held_files(shim)}
        threads = read_threads(shim)
        assert {thread.mode for thread in threads} == {2}, threads
        vcpus = [thread for thread in threads if thread.filters == 2]
        assert len(vcpus) == 1, threads
        assert {thread.filters for thread in threads} == {1, 2}, threads
        report = report_of(client.container)
        assert roles_of(report) == set(processes)
        assert confinement_page.differences(report) == []
        assert [owned["role"] for owned in report["owned"]] == ["shim"]
        assert_on_page(report)
        print(confinement(client.container).stdout)
        assert dragonball.nested_virtualization(client.container) == 0
        dragonball.ctr("task", "pause", client.container)
        assert dragonball.status(client.container) == "PAUSED"
        dragonball.ctr("task", "resume", client.container)
        result = dragonball.ctr("task", "exec", "--exec-id", "one", client.container, "echo", "back")
        assert result.stdout == "back\n"


def test_a_killed_virtiofsd_ends_the_task_with_a_reason(dragonball: DragonballNode) -> None:
    with dragonball.running(*FOREVER) as client:
        dragonball.kill(client.container, "virtiofsd")
        assert client.wait(300) == 137
        assert "virtiofsd exited: killed by SIGKILL" in client.errors
