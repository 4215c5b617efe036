"""containerd ends, by its own will or by force, while containers run, and comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node import Client, Events, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

ECHO = "trap 'echo again' USR1; echo up; while :; do sleep 0.1; done"
"""Answers a signal on its output."""


@contextmanager
def closed_for_events(node: Node) -> Iterator[Path]:
    """containerd receives events only when this path is renamed to where the shims look for it."""
    door = Path(f"{node.containerd.address}.ttrpc")
    closed = door.with_suffix(".closed")
    node.containerd.extra_config = f'[ttrpc]\n  address = "{closed}"\n'
    try:
        node.containerd.start()
        yield closed
    finally:
        node.containerd.stop()
        node.containerd.extra_config = ""
        node.containerd.start()


def test_a_container_outlives_containerd(each_node: Node) -> None:
    node = each_node
    with node.detached("sh", "-c", ECHO) as container:
        for number, expected in ((signal.SIGTERM, "up\nagain\n"), (signal.SIGKILL, "again\n")):
            node.containerd.stop(number)
            node.containerd.start()
            check_running(node, container, expected)
        with Client(node.command("task", "attach", container)) as client:
            node.ctr("task", "kill", "--signal", "SIGKILL", container)
            assert client.wait() == 137
        assert node.status(container) is None


def check_running(node: Node, container: str, expected: str) -> None:
    """It is listed, takes an exec, and what it has written meanwhile and writes now is received."""
    assert node.status(container) == "RUNNING"
    arguments = ("task", "exec", "--exec-id", "e", container, "sh", "-c", "echo in; exit 9")
    result = node.ctr(*arguments, check=False)
    assert (result.returncode, result.stdout) == (9, "in\n")
    with Client(node.command("task", "attach", container)) as client:
        node.ctr("task", "kill", "--signal", "SIGUSR1", container)
        node.until(lambda: "again" in client.output, "output after the restart")
        assert client.output == expected


def test_a_container_that_ends_while_containerd_is_away(each_node: Node, tmp_path: Path) -> None:
    """It is found stopped, and its end is published once containerd's door for events is open again."""
    node = each_node
    mount = ("--mount", f"type=bind,src={tmp_path},dst=/gate,options=rbind:rw")
    script = "touch /gate/up; while [ ! -e /gate/open ]; do sleep 0.1; done; touch /gate/ended; exit 5"
    with node.detached("sh", "-c", script, options=mount) as container:
        node.until((tmp_path / "up").exists, "the container's first act")
        node.containerd.stop(signal.SIGKILL)
        (tmp_path / "open").touch()
        node.until((tmp_path / "ended").exists, "the container's last act")
        with closed_for_events(node) as door:
            node.until(lambda: node.status(container) == "STOPPED", "its end in the list")
            with Events(node) as events:
                assert events.of(container) == []
                door.rename(door.with_suffix(".ttrpc"))
                node.until(lambda: events.of(container), "the event")
                ((topic, event),) = events.of(container)
                assert (topic, event["id"], event["exit_status"]) == ("exit", container, 5)
            result = node.ctr("task", "rm", container)
            assert "exit with non-zero exit code 5" in result.stderr
