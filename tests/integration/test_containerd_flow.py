"""The way of a container through each supported containerd: run, look, exec, pause, kill, pods."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from node import FOREVER, RUNTIME, Client, Events, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

BARE_RUNTIME = "io.containerd.kata"


@pytest.fixture
def kernel(guest_image: Path) -> str:
    """The release of the guest's kernel, as the image's manifest has it."""
    return str(json.loads((guest_image / "manifest.json").read_text())["kernel"])


def metrics_of(node: Node, container: str) -> dict[str, float]:
    """The numbers that `ctr task metrics` prints, by name, with the nested names joined by dots."""
    found: dict[str, float] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, int | float):
            found[prefix] = value

    walk("", json.loads(node.ctr("task", "metrics", "--format", "json", container).stdout))
    return found


def test_a_container_runs_on_the_guest_kernel_and_its_status_is_ctrs(each_node: Node, kernel: str) -> None:
    result = each_node.run("sh", "-c", "uname -r; exit 42")
    assert (result.returncode, result.stdout, result.stderr) == (42, f"{kernel}\n", "")


def test_the_bare_runtime_name_is_ours_too(node: Node, kernel: str) -> None:
    result = node.run("uname", "-r", runtime=BARE_RUNTIME)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{kernel}\n", "")


def test_a_containers_life(each_node: Node) -> None:
    """Everything that can be asked of one running container, and the events of it in their order."""
    node = each_node
    with Events(node) as events:
        with node.running("sh", "-c", "echo up; exec sleep 3600") as client:
            container = client.container
            node.until(lambda: client.output == "up\n", "its output")
            check_listings(node, container)
            check_exec(node, container)
            check_pause(node, container)
            check_refusals(node, container)
            node.ctr("task", "kill", "--signal", "SIGKILL", container)
            assert client.wait() == 137
        topics = [topic for topic, _ in events.of(container)]
        started, finished = ["exec-added", "exec-started"], "exit"
        assert topics == ["create", "start", *started, finished, *started, finished, "paused", "resumed", "exit", "delete"]
        exits = [event["exit_status"] for topic, event in events.of(container) if topic == "exit"]
        assert exits == [7, 137, 137]


def check_listings(node: Node, container: str) -> None:
    pids = node.pids(container)
    assert node.status(container) == "RUNNING"
    rows = [line.split() for line in node.ctr("task", "ls").stdout.splitlines()]
    assert [container, str(pids["qemu"]), "RUNNING"] in rows
    assert str(pids["qemu"]) in node.ctr("task", "ps", container).stdout
    before = metrics_of(node, container)
    assert before
    node.ctr("task", "exec", "--exec-id", "busy", container, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 0")
    assert {key for key, value in metrics_of(node, container).items() if value > before.get(key, 0)}


def check_exec(node: Node, container: str) -> None:
    result = node.ctr("task", "exec", "--exec-id", "one", container, "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (result.returncode, result.stdout, result.stderr.splitlines()[0]) == (7, "out\n", "err")


def check_pause(node: Node, container: str) -> None:
    node.ctr("task", "pause", container)
    assert node.status(container) == "PAUSED"
    node.ctr("task", "resume", container)
    assert node.status(container) == "RUNNING"


def check_refusals(node: Node, container: str) -> None:
    pass
