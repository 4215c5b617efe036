"""Containers on a KVM that runs unmodified guests, reached over vhost-vsock: `make test-rig`."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from held_files import held_files
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.broker import cgroups
from kata_runtime.ctl import check, findings
from node import FOREVER, Node, Pod

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(600)]

PAGE = 4096
NESTED = [Path(f"/sys/module/kvm_{maker}/parameters/nested") for maker in ("amd", "intel")]


@pytest.fixture(scope="module")
def qemu(node: Node, pod: Pod) -> int:
    """The process id of the pod's QEMU."""
    return node.pids(pod.sandbox)["qemu"]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal, 30 rows of 100 columns."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "30", "cols", "100"], stdin=theirs, check=True)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_check_finds_this_host_fit() -> None:
    setup = check.read_setup()
    for finding in (check.check_kvm(setup), check.check_vhost_vsock(setup)):
        assert finding.status is findings.Status.OK, finding


def test_the_machine_runs_on_kvm_and_is_reached_over_vhost_vsock(qemu: int) -> None:
    assert {"anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "/dev/vhost-vsock"} <= {*held_files(qemu)}
    assert b"virtserialport" not in Path(f"/proc/{qemu}/cmdline").read_bytes()


def test_every_thread_is_confined_the_virtual_cpus_too(qemu: int) -> None:
    threads = read_threads(qemu)
    assert "CPU 0/KVM" in [thread.name for thread in threads]
    assert {thread.mode for thread in threads} == {2}, threads


def test_the_guest_has_no_virtualization_of_its_own(node: Node, pod: Pod) -> None:
    assert node.nested_virtualization(pod.sandbox) == 0


def test_a_guest_that_may_have_it_sees_the_hosts_virtualization(node: Node) -> None:
    offered = [path for path in NESTED if path.exists() and path.read_text().strip() in ("1", "Y")]
    if not offered:
        pytest.skip("this host's KVM offers no nested virtualization")
    path = node.configuration("nested", disable_nested_virtualization=False)
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        assert node.nested_virtualization(client.container) == 1


def test_the_guests_kernel_and_an_exit_status(pod: Pod, guest_image: Path) -> None:
    kernel = json.loads((guest_image / "manifest.json").read_text())["kernel"]
    result = pod.run("sh", "-c", "uname -r; exit 42")
    assert (result.returncode, result.stdout, result.stderr) == (42, f"{kernel}\n", "")


def test_five_megabytes_come_out_and_one_goes_in_unchanged(pod: Pod) -> None:
    text = "".join(f"{number:015}\n" for number in range(65536))
    result = pod.run("sh", "-c", "sha256sum >&2; seq 750000", stdin=text)
    assert result.stderr.split()[0] == digest(text)
    expected = "".join(f"{number}\n" for number in range(1, 750001))
    assert len(expected) > 5_000_000
    assert digest(result.stdout) == digest(expected)


def test_exec_has_streams_of_its_own_and_a_status(node: Node, pod: Pod) -> None:
    command = ("task", "exec", "--exec-id", "one", pod.sandbox, "sh", "-c", "cat; echo err >&2; exit 7")
    result = node.ctr(*command, check=False, stdin="in")
    assert (result.returncode, result.stdout, result.stderr) == (7, "in", "err\n")


def test_exec_with_a_terminal(node: Node, pod: Pod, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    command = node.command(
        "task", "exec", "--tty", "--exec-id", "two", pod.sandbox, "sh", "-c", "read x; stty size; exit 3"
    )
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as client:
        os.write(ours, b"typed\n")
        assert client.wait(300) == 3
    seen = os.read(ours, PAGE).decode()
    assert "typed\r\n" in seen
    assert "\n30 100\r" in seen


def test_pause_and_resume(node: Node, pod: Pod) -> None:
    with pod.running("sh", "-c", "while :; do echo tick; sleep 0.1; done") as member:
        node.ctr("task", "pause", member.container)
        assert node.status(member.container) == "PAUSED"
        node.ctr("task", "resume", member.container)
        assert node.status(member.container) == "RUNNING"
        ticks = len(member.output)
        node.until(lambda: len(member.output) > ticks, "it goes on")


def test_a_killed_qemu_ends_the_task_with_a_reason_and_leaves_nothing(node: Node, nothing_left: None) -> None:
    with node.running(*FOREVER) as client:
        group = cgroup_of(node, client.container)
        inside = {int(line) for line in (group / "cgroup.procs").read_text().split()}
        assert set(node.pids(client.container).values()) <= inside
        node.kill(client.container, "qemu")
        assert client.wait(300) == 137
        assert f"container {client.container} was stopped: qemu was killed by SIGKILL" in client.errors
    node.until(lambda: not group.exists(), "its cgroup is gone")


def test_the_kernels_kills_for_want_of_memory_are_counted() -> None:
    group = cgroups.Cgroup(f"/kata-test/{os.getpid()}", cgroups.hierarchies())
    made: list[tuple[str, str]] = []
    group.create(lambda kind, directory, origin: made.append((kind, directory)))
    try:
        limit = memory_of(group.path) / "memory.max"
        (limit if limit.exists() else limit.with_name("memory.limit_in_bytes")).write_text("16M")
        assert group.oom_kills() == 0
        hog = "import sys; sys.stdin.read(); x = b'.' * (64 << 20)"
        with subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE) as process:
            group.join(process.pid)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert group.oom_kills() == 1
    finally:
        for _, directory in reversed(made):
            cgroups.remove(directory)


def digest(text: str) -> str:
    """The checksum of a text, in whose place a failing test would print all of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def cgroup_of(node: Node, container: str) -> Path:
    """The cgroup of a sandbox, where memory is accounted."""
    return memory_of(f"/{node.namespace}/{container}")


def memory_of(path: str) -> Path:
    """A cgroup's directory in the hierarchy that has the memory controller."""
    mounted = cgroups.hierarchies()
    holder = next((one for one in mounted if "memory" in one.controllers), mounted[0])
    return Path(holder.mountpoint + path)
