"""Limits of containers hold in the guest, fit into it, and their end is a container's and not the guest's."""

from __future__ import annotations

import re

import pytest

from node import FOREVER, Events, Node, Pod

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

MIB = 1 << 20
USE = "dd if=/dev/zero of=/dev/null bs={}M count={} 2>/dev/null"


def limit(mib: int) -> tuple[str, str]:
    return "--memory-limit", str(mib * MIB)


def test_a_container_has_all_of_its_limit(node: Node) -> None:
    """Its machine is sized by the limit: the guest's own needs are beside it."""
    use = f"({USE.format(70, 30)}; echo $?) &"
    result = node.run("sh", "-c", f"{use} {use} {use} wait", options=limit(256))
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n0\n0\n", "")


def test_what_wants_more_than_its_limit_is_killed_and_its_pod_goes_on(pod: Pod) -> None:
    node = pod.node
    with Events(node) as events, pod.running(*FOREVER, options=limit(64)) as client:
        script = f"{USE.format(100, 1)}; echo $?"
        eaten = node.ctr("task", "exec", "--exec-id", "eat", client.container, "sh", "-c", script)
        assert eaten.stdout == "137\n"
        node.until(lambda: ("oom", {"container_id": client.container}) in events.of(client.container), "oom")
    assert pod.run("echo", "alive").stdout == "alive\n"


def test_containers_without_limits_that_eat_the_machine_do_not_stop_it(pod: Pod) -> None:
    """The guest's kernel ends one of them, in the group of all containers; its agent answers meanwhile."""
    node = pod.node
    with pod.running("sh", "-c", f"while :; do {USE.format(440, 1)}; echo $?; done") as client:
        node.until(lambda: client.output.count("137") > 2 or client.ended, "the third that is killed")
        assert not client.ended
        assert pod.run("echo", "alive").stdout == "alive\n"
        assert set(client.output.split()) == {"137"}


def test_a_limit_that_does_not_fit_into_the_pods_machine_is_refused_with_what_would_do(pod: Pod) -> None:
    result = pod.run("true", options=limit(4096))
    assert result.returncode == 1
    assert "the memory limit of 4096 MiB does not fit into the guest, which has " in result.stderr
    more = re.search(r"give its machine (\d+) MiB more", result.stderr)
    assert more
    assert 3584 < int(more[1]) < 4096 + 256
