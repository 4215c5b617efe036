"""The way of a container through each supported containerd: run, look, exec, pause, kill, pods."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from node import IMAGE, RUNTIME, Client, Events, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

BARE_RUNTIME = "io.containerd.kata"


@pytest.fixture
def kernel(guest_image: Path) -> str:
    """The release of the guest's kernel, as the image's manifest has it."""
    return str(json.loads((guest_image / "manifest.json").read_text())["kernel"])


def test_a_container_runs_on_the_guests_kernel_and_its_status_is_ctrs(each_node: Node, kernel: str) -> None:
    result = each_node.run("sh", "-c", "uname -r; exit 42")
    assert (result.returncode, result.stdout, result.stderr) == (42, f"{kernel}\n", "")


def test_the_bare_runtime_name_is_ours_too(node: Node, kernel: str) -> None:
    result = node.run("uname", "-r", runtime=BARE_RUNTIME)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{kernel}\n", "")


def test_a_containers_life(each_node: Node) -> None:
    """What can be asked of one running container, one after the other, and the events of all that."""
    node = each_node
    with Events(node) as events:
        script = "echo up; until [ -e /given ]; do sleep 0.1; done; cat /given; exec sleep 3600"
        with node.running("sh", "-c", script) as client:
            container = client.container
            node.until(lambda: client.output == "up\n", "its output")
            check_listings(node, container)
            check_files(node, client)
            check_exec(node, container)
            check_pause(node, container)
            check_refusals(node, container)
            node.ctr("task", "kill", "--signal", "SIGKILL", container)
            assert client.wait() == 137
            assert node.status(container) is None
        node.until(lambda: events.of(container)[-1][0] == "delete", "the last event")
        assert [topic for topic, _ in events.of(container)] == [
            *("create", "start"),
            *("exec-added", "exec-started", "exit"),
            *("exec-added", "exec-started", "exit"),
            *("paused", "exec-added", "resumed"),
            *("exit", "delete"),
        ]
        ends = [
            (event["id"], event.get("exit_status", 0))
            for topic, event in events.of(container)
            if topic == "exit"
        ]
        assert ends == [("one", 7), ("two", 137), (container, 137)]


def check_listings(node: Node, container: str) -> None:
    pids = node.pids(container)
    qemu, init = str(pids["qemu"]), str(pids["init"])
    rows = [line.split() for line in node.ctr("task", "ls").stdout.splitlines()]
    assert [container, init, "RUNNING"] in rows
    assert qemu in node.ctr("task", "ps", container).stdout


def check_files(node: Node, client: Client) -> None:
    """They are seen at the root of the pid that containerd is told, both ways; no link is followed there."""
    root = Path(f"/proc/{node.pids(client.container)['init']}/root")
    assert "user:x:1000" in (root / "etc/passwd").read_text()
    assert (root / "bin/sh").readlink() == Path("busybox")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        (root / "bin/sh").read_bytes()
    (root / "given").write_text("by the host\n")
    node.until(lambda: client.output == "up\nby the host\n", "a file that was put there")


def check_exec(node: Node, container: str) -> None:
    """Streams, a status, a signal; and in between the container's metrics move."""
    before = metrics_of(node, container)
    one = exec_in(node, container, "one", "sh", "-c", "cat; echo err >&2; exit 7", stdin="in")
    assert one == (7, "in", "err\n")
    after = metrics_of(node, container)
    assert after["cpu.usage.total"] > before["cpu.usage.total"] > 0
    assert before["pids.current"] == 1
    assert before["memory.usage.usage"] > 0
    two = node.ctr(
        "task",
        "exec",
        "--exec-id",
        "two",
        "--user",
        "1000:29",
        container,
        "sh",
        "-c",
        "id; kill -9 $$",
        check=False,
    )
    assert (two.returncode, two.stdout) == (137, "uid=1000(user) gid=29(audio) groups=29(audio)\n")


def check_pause(node: Node, container: str) -> None:
    node.ctr("task", "pause", container)
    assert node.status(container) == "PAUSED"
    status, _, error = exec_in(node, container, "three", "true")
    assert status == 1
    assert f"cannot start exec three of container {container}: the container is paused" in error
    node.ctr("task", "resume", container)
    assert node.status(container) == "RUNNING"


def check_refusals(node: Node, container: str) -> None:
    for arguments, reason in (
        (("task", "rm", container), "task must be stopped before deletion: running"),
        (("task", "start", container), f"task {container}: already exists"),
        (("run", "--runtime", RUNTIME, IMAGE, container, "true"), f'"{container}": already exists'),
    ):
        result = node.ctr(*arguments, check=False)
        assert result.returncode == 1
        assert reason in result.stderr
    assert node.status(container) == "RUNNING"


def exec_in(node: Node, container: str, name: str, *command: str, stdin: str = "") -> tuple[int, str, str]:
    """Status, output and errors of `ctr task exec`."""
    result = node.ctr("task", "exec", "--exec-id", name, container, *command, check=False, stdin=stdin)
    return result.returncode, result.stdout, result.stderr


def metrics_of(node: Node, container: str) -> dict[str, float]:
    """The numbers that `ctr task metrics` prints, the names of nested ones joined with dots."""

    def walk(prefix: str, value: object) -> Iterator[tuple[str, float]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}", inner)
        elif isinstance(value, int):
            yield prefix.removeprefix("."), value

    return dict(walk("", json.loads(node.ctr("task", "metrics", "--format", "json", container).stdout)))


def test_a_pod_is_one_machine(each_node: Node) -> None:
    """Containers that name their sandbox share its machine, come and go in it, and end with it."""
    node = each_node
    with node.pod() as pod:
        for status in (0, 1, 42):
            result = pod.run("sh", "-c", f"hostname; cat /proc/sys/kernel/random/boot_id >&2; exit {status}")
            assert (result.returncode, result.stdout) == (status, f"{pod.sandbox}\n")
        with pod.running("sh", "-c", "cat /proc/sys/kernel/random/boot_id >&2; exec sleep 3600") as member:
            node.until(lambda: member.errors, "its output")
            assert member.errors == result.stderr
            assert node.sandboxes() == [pod.sandbox]
            node.ctr("task", "kill", "--signal", "SIGKILL", pod.sandbox)
            assert member.wait() == 137
            reason = f"its pod ended: the sandbox's container {pod.sandbox} was deleted"
            assert f"kata: container {member.container} was stopped: {reason}" in member.errors


def test_a_container_of_a_sandbox_that_does_not_run_is_refused(node: Node) -> None:
    annotations = {"container-type": "container", "sandbox-id": "nowhere"}
    options = [
        w for key, value in annotations.items() for w in ("--annotation", f"io.kubernetes.cri.{key}={value}")
    ]
    container = node.new_id()
    result = node.run("true", options=options, container=container)
    assert result.returncode == 1
    assert f"the sandbox nowhere of container {container} is not running" in result.stderr


@pytest.mark.timeout(300)  # eight machines boot on as few processors as there are
def test_eight_containers_at_once(node: Node) -> None:
    """Each in a machine of its own, and all of them running in the same moment."""
    script = "echo $0; while [ ! -e /gate/open ]; do sleep 0.2; done; exit $0"
    with tempfile.TemporaryDirectory() as gate, ExitStack() as stack:
        mount = ("--mount", f"type=bind,src={gate},dst=/gate,options=rbind:ro")
        clients = [node.attended("sh", "-c", script, str(n), options=mount, rm=True) for n in range(8)]
        for client in clients:
            stack.callback(client.close)
            stack.callback(node.discard, client.container)
        node.until(lambda: all(c.output or c.ended for c in clients), "the outputs", 200)
        assert sorted(node.sandboxes()) == sorted(client.container for client in clients)
        (Path(gate) / "open").touch()
        assert [client.wait() for client in clients] == list(range(8))
        assert [client.output for client in clients] == [f"{number}\n" for number in range(8)]
