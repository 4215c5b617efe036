"""Unikernels in Solo5's own tender, through the real containerd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_hypervisor.seccomp.confinement import read_threads
from unikernel import HELLO, build_unikernel
from unikernel_node import RUNTIME, UnikernelNode

SOLO5_HVT = os.environ.get("KATA_TEST_SOLO5_HVT") or shutil.which("solo5-hvt")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
    pytest.mark.skipif(
        SOLO5_HVT is None, reason="needs solo5-hvt 0.11 or newer, on PATH or named by KATA_TEST_SOLO5_HVT"
    ),
]


@pytest.fixture(scope="module")
def node() -> Iterator[UnikernelNode]:
    one = UnikernelNode("solo5-hvt", f'path = "{SOLO5_HVT}"\n')
    yield one
    one.close()


@pytest.fixture(scope="module")
def commands(node: UnikernelNode, tmp_path_factory: pytest.TempPathFactory) -> str:
    return node.add_image("commands", build_unikernel(tmp_path_factory.mktemp("guests")))


def test_it_prints_and_ends(node: UnikernelNode, tmp_path: Path) -> None:
    image = node.add_image("hello", build_unikernel(tmp_path, source=HELLO))
    result = node.run(image, "some", "words")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("unikernel: some words\n")


@pytest.mark.parametrize("status", [0, 7])
def test_its_status_is_the_containers(node: UnikernelNode, commands: str, status: int) -> None:
    assert node.run(commands, "exit", str(status)).returncode == status


def test_the_tenders_complaint_is_told(node: UnikernelNode, commands: str) -> None:
    result = node.run(commands, "call", "77")
    assert result.returncode == 1
    assert "kata: solo5-hvt exited: exit status 1: solo5-hvt: Invalid guest port access" in result.stderr


def test_every_thread_of_the_tender_is_confined(node: UnikernelNode, commands: str) -> None:
    container = node.new_id()
    assert node.ctr("run", "-d", "--runtime", RUNTIME, commands, container, "spin").returncode == 0
    pid = int(node.ctr("task", "ls").stdout.split(container)[1].split()[0])
    threads = read_threads(pid)
    assert threads[0].name == "solo5-hvt"
    assert all(thread.confined for thread in threads)
    for command, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        assert node.ctr("task", command, container).returncode == 0
        assert state in node.ctr("task", "ls").stdout
    node.ctr("task", "rm", "--force", container)
    node.ctr("container", "rm", container)
    assert node.nothing_left(container)
    assert not Path(f"/proc/{pid}").exists()


def test_a_linux_container_is_refused(node: UnikernelNode, tmp_path: Path) -> None:
    import busybox_image

    archive = tmp_path / "busybox.tar"
    busybox_image.write_image(archive)
    assert node.ctr("image", "import", str(archive)).returncode == 0
    result = node.run(busybox_image.NAME, "true")
    assert (result.returncode, "[hypervisor.solo5-hvt] runs unikernels only" in result.stderr) == (1, True)
