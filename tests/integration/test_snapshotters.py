"""Each snapshotter of containerd gives a container the root file system that it gives one of runc's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import busybox_image
import containerd_versions
from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RUNC = "io.containerd.runc.v2"
SNAPSHOTTERS = (
    (containerd_versions.SYSTEM, "overlayfs"),
    (containerd_versions.SYSTEM, "native"),
    (containerd_versions.SECOND, "overlayfs"),
    (containerd_versions.SECOND, "native"),
)
SCRIPT = (
    "cat /etc/group; echo new > /etc/group; ln -s x /l; mkdir /d; rm /bin/vi; stat -c %a:%u /tmp /etc/* /l"
)


@pytest.mark.parametrize(("version", "snapshotter"), SNAPSHOTTERS)
def test_a_root_file_system_is_what_it_is_with_runc(
    nodes: Callable[[str], Node], version: str, snapshotter: str
) -> None:
    node = nodes(version)
    plugins = [line.split() for line in node.ctr("plugins", "ls").stdout.splitlines()]
    if not any(line[1:2] == [snapshotter] and line[-1] == "ok" for line in plugins):
        pytest.skip(f"containerd {version} has no snapshotter {snapshotter} here")
    # `ctr run` unpacks the image for a snapshotter that has it not; before version 2 only an import does.
    if version == containerd_versions.SYSTEM:
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "image.tar"
            busybox_image.write_image(archive)
            node.ctr("image", "import", "--snapshotter", snapshotter, archive)
    options = ("--snapshotter", snapshotter)
    with_runc = node.run("sh", "-c", SCRIPT, options=options, runtime=RUNC)
    assert with_runc.returncode == 0, with_runc.stderr
    assert with_runc.stdout
    before = node.leftovers()  # after runc, which leaves the namespace's cgroup
    ours = node.run("sh", "-c", SCRIPT, options=options)
    assert (ours.returncode, ours.stdout) == (0, with_runc.stdout), ours.stderr
    assert before.settle() == []


@pytest.fixture
def sharing_node(guest_image: Path, tmp_path: Path) -> Iterator[Node]:
    """A node whose mounts are shared, as systemd makes a host's: pods receive those that come later."""
    try:
        programs = containerd_versions.find(containerd_versions.SECOND)
    except containerd_versions.NotAvailableError as error:
        pytest.skip(str(error))
    wrapper = tmp_path / "containerd"
    wrapper.write_text(f'#!/bin/sh\nexec unshare --mount --propagation shared {programs.containerd} "$@"\n')
    wrapper.chmod(0o755)
    node = Node(replace(programs, containerd=wrapper), guest_image)
    try:
        node.start()
        yield node
    finally:
        node.close()


def test_layers_that_containerd_mounts_itself_are_seen(sharing_node: Node) -> None:
    plugins = [line.split() for line in sharing_node.ctr("plugins", "ls").stdout.splitlines()]
    if ["io.containerd.snapshotter.v1", "erofs"] not in [line[:2] for line in plugins if line[-1:] == ["ok"]]:
        pytest.skip("this containerd has no snapshotter erofs here")
    for _ in range(2):
        done = sharing_node.run("sh", "-c", SCRIPT, options=("--snapshotter", "erofs"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("root:x:0:")
