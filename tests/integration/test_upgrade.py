"""Another version of the package is installed while pods run: for them, nothing changes."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import chaos_node
import containerd_versions
from installed_copy import VERSION, InstalledCopy
from kata_runtime.ctl.shim import NAMES
from network_bed import PodNetwork
from node import FOREVER, RUNTIME, Node
from unikernel import build_unikernel
from unikernel_description import described
from unikernel_image import BINARY
from unikernel_node import TABLE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

LAUNCHER = NAMES[0]


@pytest.fixture
def copy(tmp_path: Path) -> InstalledCopy:
    return InstalledCopy(tmp_path)


@pytest.fixture
def upgraded(guest_image: Path, copy: InstalledCopy) -> Iterator[Node]:
    """A node of its own, whose shims are the copy's; nothing is left of what was on it."""
    node = Node(containerd_versions.find(containerd_versions.SYSTEM), guest_image)
    copy.write_launchers(node.root / "bin")
    try:
        node.start()
        before = node.leftovers()
        yield node
        assert before.settle() == []
    finally:
        node.close()


def version_of(node: Node) -> str:
    done = subprocess.run([node.root / "bin" / LAUNCHER, "-v"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def check_imports(copy: InstalledCopy, *programs: str) -> None:
    """No process has modules of both versions; what has some of the new one alone are launchers and these."""
    imports = copy.imports()
    assert imports
    assert [one for one in imports if one[0] == "mixed"] == []
    started = {command for _, _, command in imports if LAUNCHER not in command}
    assert {program for program in programs for command in started if program in command} == {*programs}
    assert len(started) == len(programs)


def test_a_pod_of_linux_goes_on_as_it_was(upgraded: Node, copy: InstalledCopy) -> None:
    node = upgraded
    with node.pod() as pod:
        assert version_of(node) != VERSION
        copy.replace()
        copy.hide_data()
        exec_ = ("task", "exec", "--exec-id", secrets.token_hex(4), pod.sandbox)
        done = node.ctr(*exec_, "sh", "-c", "echo in; exit 7", check=False)
        assert (done.returncode, done.stdout) == (7, "in\n"), done.stderr
        later = pod.run("sh", "-c", "echo later; exit 3")
        assert (later.returncode, later.stdout) == (3, "later\n"), later.stderr
        for command in ("pause", "resume", "metrics", "ps"):
            node.ctr("task", command, pod.sandbox)
        with pod.running(*FOREVER) as client:
            node.ctr("task", "kill", "--signal", "KILL", client.container)
            assert client.wait() == 137
        assert "executable file not found in $PATH" in pod.run("/nowhere").stderr
        check_imports(copy)
        copy.show_data()
        assert version_of(node) == VERSION
        new = node.run("echo", "new")
        assert (new.returncode, new.stdout) == (0, "new\n"), new.stderr
        copy.hide_data()
    check_imports(copy)


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm")
def test_the_network_of_a_pod_is_taken_away_by_the_new_versions_program(
    upgraded: Node, copy: InstalledCopy, tmp_path: Path
) -> None:
    """What the broker starts later is wholly of one version: it is asked by what is in `network.json`."""
    node = upgraded
    image = chaos_node.add_image(node, "frames", build_unikernel(tmp_path, "NET"), {})
    options = chaos_node.configured(node, "dragonball", TABLE)
    with closing(PodNetwork(tmp_path)) as network:
        network.wire("eth0", "10.9.0.2/24")
        before = network.pod.state()
        kind = described(binary=BINARY, hypervisor="hvt", unikernelType="unikraft").items()
        options += tuple(word for key, value in kind for word in ("--annotation", f"{key}={value}"))
        options += ("--with-ns", f"network:{network.pod.path}")
        container = node.new_id()
        node.ctr("run", "--detach", "--runtime", RUNTIME, *options, image, container, "frames")
        try:
            assert network.pod.state() != before
            copy.replace()
            node.ctr("task", "kill", "--signal", "KILL", container)
            node.until(lambda: node.status(container) == "STOPPED", "its end")
        finally:
            node.discard(container)
        node.until(lambda: network.pod.state() == before, "the namespace as it was")
    check_imports(copy, "network/program.py")
