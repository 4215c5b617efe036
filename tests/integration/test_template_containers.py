"""Containers whose machine starts from a template, through containerd, on a real KVM: `make test-rig`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import containerd_versions
import shipped_configuration
from kata_hypervisor.seccomp.confinement import read_threads
from node import FOREVER, Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(600)]

CONFIGURATION = """
[hypervisor.dragonball]
kernel = {kernel}
initrd = {initrd}
image = {image}
virtio_fs_daemon = {virtio_fs_daemon}
shared_fs = {shared_fs}
default_memory = 256
enable_annotations = ["default_vcpus"]

[hypervisor.dragonball.factory]
enable_template = true
template_path = {template_path}

[runtime]
hypervisor_name = "dragonball"
agent_name = "kata"

[agent.kata]
reconnect_timeout_ms = {reconnect_timeout_ms}
"""
LOOK = "hostname; date +%s; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; nproc"


class TemplateNode(Node):
    """A node whose configuration selects the in-process machine, and a template."""

    def configuration(self, name: str, /, **values: shipped_configuration.Value) -> Path:
        """Write NAME.toml. See Node."""
        own = {"template_path": self.root / "template", "shared_fs": "virtio-fs"}
        texts = {
            key: json.dumps(str(value) if isinstance(value, Path) else value)
            for key, value in (self._values | own | values).items()
        }
        path = self.root / f"{name}.toml"
        path.write_text(CONFIGURATION.format_map(texts), encoding="utf-8")
        return path

    def factory(self, action: str, configuration: Path) -> subprocess.CompletedProcess[str]:
        """Run kata-ctl factory."""
        command = [
            sys.executable,
            "-m",
            "kata_runtime.ctl.main",
            "factory",
            action,
            "--config",
            str(configuration),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def look(self, *options: str) -> list[str]:
        """What a container sees of itself: hostname, time, boot id, random bytes, processors."""
        result = self.run("sh", "-c", LOOK, options=options)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()


@pytest.fixture(scope="module")
def node(guest_image: Path) -> Iterator[TemplateNode]:
    """A node with the system's containerd."""
    node = TemplateNode(containerd_versions.find(containerd_versions.SYSTEM), guest_image)
    before = node.leftovers()
    try:
        node.start()
        yield node
        assert before.settle() == []
    finally:
        node.factory("destroy", node.root / "default.toml")
        node.close()


def test_without_a_template_a_pod_is_told_how_to_make_one(node: TemplateNode) -> None:
    assert node.factory("destroy", node.root / "default.toml").stdout.endswith("there is none\n")
    result = node.run("true")
    assert result.returncode != 0
    assert f"there is no template in {node.root}/template: run kata-ctl factory init" in result.stderr


@pytest.mark.parametrize("shared_fs", ["virtio-fs", "none"])
def test_pods_from_one_template_have_their_own_identity(node: TemplateNode, shared_fs: str) -> None:
    configuration = node.configuration("default", shared_fs=shared_fs)
    made = node.factory("init", configuration)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in (node.root / "template").iterdir()) == ["memory", "state"]
    seen = [node.look("--env", "X=1") for _ in range(2)]
    now = time.time()
    for place in range(4):
        assert seen[0][place] != seen[1][place]
    assert all(abs(now - int(one[1])) < 60 for one in seen)
    assert "is booted, not started from its template" not in node.log()
    with node.running(*FOREVER) as client:
        shim = node.pids(client.container)["shim"]
        threads = read_threads(shim)
        assert {thread.mode for thread in threads} == {2}, threads
        assert len([thread for thread in threads if thread.filters == 2]) == 1, threads
        assert ("/template/memory" in Path(f"/proc/{shim}/maps").read_text()) is (shared_fs == "none")
        node.ctr("task", "pause", client.container)
        node.ctr("task", "resume", client.container)
        result = node.ctr("task", "exec", "--exec-id", "one", client.container, "echo", "back")
        assert result.stdout == "back\n"


def test_a_pod_of_another_size_is_booted(node: TemplateNode) -> None:
    size = "io.katacontainers.config.hypervisor.default_vcpus=2"
    assert node.look("--annotation", size)[4] == "2"
    assert "this machine is booted, not started from its template: its number of vCPUs is '2'" in node.log()


def test_a_stale_template_is_refused(node: TemplateNode) -> None:
    kernel = node.root / "vmlinuz"
    kernel.write_bytes(Path(str(node._values["kernel"])).read_bytes() + b"\0")
    configuration = node.configuration("default", kernel=kernel, shared_fs="none")
    result = node.run("true")
    assert result.returncode != 0
    assert "the guest's kernel was" in result.stderr
    assert "make it anew: kata-ctl factory init" in result.stderr
    assert node.factory("status", configuration).returncode == 1
