"""One process of a running sandbox is killed: the container has ended, with a reason, and nothing is left."""

from __future__ import annotations

import os
import re
import signal

import pytest

from node import FOREVER, Events, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

SOON = 10.0
"""Seconds, on a busy host; where nobody notices, only a health check or a person would, much later."""


@pytest.mark.parametrize("role", ["broker", "virtiofsd"])
def test_who_attends_to_it_reads_why(node: Node, role: str) -> None:
    with Events(node) as events, node.running(*FOREVER) as client:
        container = client.container
        pid = node.pids(container)[role]
        node.kill(container, role)
        assert client.wait(SOON) == 137
        how = (
            f"the broker (process {pid}) has exited" if role == "broker" else f"{role} was killed by SIGKILL"
        )
        assert client.errors.startswith(f"kata: container {container} was stopped: {how}")
        assert client.errors.count("\n") == 1
        if role != "broker":  # which passes on what a sealed shim logs
            assert f'level=error msg="sandbox {container} has ended: {how}' in node.log()
        check_end(node, events, container)


def test_whom_nobody_attends_to_is_found_stopped(node: Node) -> None:
    with Events(node) as events, node.detached(*FOREVER) as container:
        node.kill(container, "qemu")
        node.until(lambda: node.status(container) == "STOPPED", "its end in the list", SOON)
        assert f'level=error msg="sandbox {container} has ended: qemu was killed by SIGKILL' in node.log()
        refused = node.ctr("task", "exec", "--exec-id", "e", container, "true", check=False)
        assert f"cannot exec in container {container}: it is stopped" in refused.stderr
        assert "exit with non-zero exit code 137" in node.ctr("task", "rm", container).stderr
        check_end(node, events, container)


def test_without_its_shim_containerd_tells_the_end(each_node: Node) -> None:
    node = each_node
    with Events(node) as events, node.running(*FOREVER) as client:
        container = client.container
        node.kill(container, "shim")
        assert client.wait(SOON) != 0
        assert "ttrpc: closed" in client.errors
        assert 'msg="shim disconnected"' in node.log()
        check_end(node, events, container)


def check_end(node: Node, events: Events, container: str) -> None:
    """Exactly one exit event, with the status of SIGKILL, and then the deletion."""
    node.until(lambda: events.of(container)[-1][0] == "delete", "the last event", SOON)
    published = [(topic, event.get("exit_status")) for topic, event in events.of(container)]
    assert published == [("create", None), ("start", None), ("exit", 137), ("delete", 137)]
    assert node.status(container) is None


def test_a_sandbox_that_dies_while_containerd_is_away_is_cleared_up_when_it_is_back(node: Node) -> None:
    """With shim and broker dead at once, only what containerd calls then is left to do it."""
    with node.detached(*FOREVER) as container:
        node.containerd.stop()
        pids = node.pids(container)
        for role in ("shim", "broker"):
            os.kill(pids[role], signal.SIGSTOP)
        for role in ("shim", "broker"):
            os.kill(pids[role], signal.SIGKILL)
        node.containerd.start()
        node.until(lambda: node.status(container) is None, "the end of the task", SOON)


@pytest.mark.parametrize("role", ["shim", "broker", "qemu", "virtiofsd"])
def test_a_death_during_the_boot_is_told_and_clears_up(node: Node, role: str) -> None:
    with node.attended(*FOREVER) as client:
        container = client.container
        node.until(lambda: container in node.sandboxes() and "qemu" in node.pids(container), "qemu")
        pid = node.pids(container)[role]
        node.kill(container, role)
        assert client.wait(SOON) == 1
        why = {"shim": "ttrpc: closed", "broker": rf"the broker \(process {pid}\) has exited"}
        killed = f"{role} was killed by SIGKILL( before the guest was ready)?"
        assert re.match(f"ctr: {why.get(role, killed)}", client.errors)
        node.discard(container)
