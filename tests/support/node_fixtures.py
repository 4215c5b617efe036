"""Fixtures for tests with the real containerd: nodes, pods on them, and nothing left of either."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/quickstart"))

import containerd_versions
from kata_hypervisor.kvm.probe import probe_kvm
from node import Node, Pod
from patience import PATIENCE

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The directory of the guest image; skips where this host lacks what it needs to run."""
    missing = [
        str(IMAGE / name)
        for name in ("vmlinuz", "kata-initrd.img", "manifest.json")
        if not (IMAGE / name).exists()
    ]
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if missing:
        pytest.skip(
            f"no guest image, {missing[0]} is missing: run make image, or name a directory in KATA_TEST_IMAGE"
        )
    for program in ("qemu-system-x86_64", "/bin/busybox"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make packages")
    return IMAGE


@pytest.fixture(scope="session")
def kvm() -> None:
    """Skips where no KVM runs unmodified guests."""
    result = probe_kvm(deadline=PATIENCE)
    if not result.runs_unmodified_guests:
        pytest.skip(f"{result.reason}: run make test-rig")


@pytest.fixture(scope="session")
def nodes(guest_image: Path) -> Iterator[Callable[[str], Node]]:
    """Nodes by the version of their containerd, each started when it is first asked for."""
    started: dict[str, Node] = {}
    with ExitStack() as stack:

        def node(version: str) -> Node:
            if version not in started:
                try:
                    programs = containerd_versions.find(version)
                except containerd_versions.NotAvailableError as error:
                    pytest.skip(str(error))
                started[version] = node = Node(programs, guest_image)
                stack.callback(node.close)
                node.start()
            return started[version]

        yield node


@pytest.fixture(scope="session")
def node(nodes: Callable[[str], Node]) -> Node:
    """A node with the system's containerd."""
    return nodes(containerd_versions.SYSTEM)


@pytest.fixture(scope="session", params=[containerd_versions.SYSTEM, containerd_versions.SECOND])
def each_node(nodes: Callable[[str], Node], request: pytest.FixtureRequest) -> Node:
    """Nodes of all versions, for what containerd's version matters to."""
    return nodes(request.param)


@pytest.fixture(scope="module")
def pod(node: Node) -> Iterator[Pod]:
    """A pod for one module's tests, which then need no virtual machine of their own."""
    before = node.leftovers()
    with node.pod() as pod:
        yield pod
    left = before.settle()
    assert left == [], left


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test on a node leaves the host as it was."""
    names = [name for name in ("node", "each_node") if name in request.fixturenames]
    nodes = [request.getfixturevalue(name) for name in names]
    before = [node.leftovers() for node in nodes]
    yield
    left = [line for one in before for line in one.settle()]
    assert left == [], left
