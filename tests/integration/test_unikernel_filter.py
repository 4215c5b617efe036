"""A solo5-hvt before 0.11, under our filter, through the real containerd: a stand-in, and a real one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_hypervisor.seccomp import readback
from kata_hypervisor.seccomp.confinement import read_threads
from old_tender import build_old_tender
from unikernel import build_unikernel
from unikernel_node import RUNTIME, UnikernelNode

OLD = os.environ.get("KATA_TEST_SOLO5_HVT_OLD", "")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
]


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnikernelNode]:
    one = UnikernelNode("solo5-hvt", f'path = "{build_old_tender(tmp_path_factory.mktemp("tender"))}"\n')
    yield one
    one.close()


@pytest.fixture(scope="module")
def real() -> Iterator[UnikernelNode]:
    if not os.path.isfile(OLD):
        pytest.skip("an old tender is missing: name a solo5-hvt before 0.11 in KATA_TEST_SOLO5_HVT_OLD")
    if not os.path.exists("/dev/kvm"):
        pytest.skip("needs /dev/kvm")
    one = UnikernelNode("solo5-hvt", f'path = "{OLD}"\n')
    yield one
    one.close()


@pytest.fixture(scope="module", params=["standin", "real"])
def node(request: pytest.FixtureRequest) -> UnikernelNode:
    found: UnikernelNode = request.getfixturevalue(request.param)
    return found


def commands(node: UnikernelNode, directory: Path) -> str:
    return node.add_image("commands", build_unikernel(directory))


def test_it_runs(node: UnikernelNode, tmp_path: Path) -> None:
    image = commands(node, tmp_path)
    result = node.run(image, "echo", "words")
    assert (result.returncode, result.stdout, result.stderr) == (0, "echo words", "")
    assert node.run(image, "exit", "7").returncode == 7


def test_the_kernel_has_our_filter_on_it(node: UnikernelNode, tmp_path: Path) -> None:
    image, container = commands(node, tmp_path), node.new_id()
    assert node.ctr("run", "-d", "--runtime", RUNTIME, image, container, "spin").returncode == 0
    pid = node.vmm(container)
    thread, *others = read_threads(pid)  # KVM may have one of its own in there
    assert (thread.name[:9], thread.mode, thread.no_new_privs) == ("solo5-hvt", 2, True)
    assert {other.filters for other in others} <= {thread.filters}
    assert len(readback.read_filters(pid)) == thread.filters
    node.ctr("task", "rm", "--force", container)
    node.ctr("container", "rm", container)
    assert node.nothing_left(container)
    assert not Path(f"/proc/{pid}").exists()


def test_a_refused_call_is_the_containers_last_word(standin: UnikernelNode, tmp_path: Path) -> None:
    result = standin.run(commands(standin, tmp_path), "socket")
    assert (result.returncode, result.stdout) == (137, "")
    assert result.stderr.startswith(
        "kata: seccomp: solo5-hvt called socket (41) when it had loaded, which policy solo5-hvt-x86_64"
    )
    assert "kata-ctl seccomp show --driver solo5-hvt-glibc" in result.stderr


def test_what_it_may_not_open_is_named(standin: UnikernelNode, tmp_path: Path) -> None:
    result = standin.run(commands(standin, tmp_path), "early", "read", "/etc/shadow")
    assert (result.returncode, "with the path '/etc/shadow'" in result.stderr) == (137, True)
