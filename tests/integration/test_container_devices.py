"""Devices of the host in a container's specification: the guest's own of that name, or refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import containerd_versions
from node import Node, Pod

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

DISK = os.makedev(254, 4095)
"""No host has it; in the guest the major number is that of its own root image, as a rule."""


@pytest.fixture
def later(nodes: Callable[[str], Node]) -> Node:
    """A node whose ctr has --privileged-without-host-devices."""
    return nodes(containerd_versions.SECOND)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A node of a block device that is not there."""
    path = tmp_path / "xdv"
    os.mknod(path, stat.S_IFBLK | 0o600, DISK)
    return path


def test_a_block_device_that_the_host_has_not_is_never_the_guests(pod: Pod, disk: Path) -> None:
    result = pod.run("true", options=("--mount", f"type=bind,src={disk},dst=/dev/xda,options=rbind:rw"))
    assert result.returncode == 1
    assert f"{disk} is the block device 254:4095 of the host, and no device rule" in result.stderr


def test_a_character_device_of_the_host_is_refused_by_name(pod: Pod, tmp_path: Path) -> None:
    node = tmp_path / "port"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(4, 64))
    result = pod.run("true", options=("--device", node))
    assert result.returncode == 1
    assert f"{node} is a character device of the host, and its number 4:64 is another device" in result.stderr


def test_devices_that_every_linux_has_are_the_guests_own(pod: Pod) -> None:
    """By their number: their node may have any path."""
    tunnel = Path("/dev", pod.node.new_id())
    os.mknod(tunnel, stat.S_IFCHR | 0o600, os.makedev(10, 200))
    try:
        script = f"for d in {tunnel} /dev/fuse; do exec 3<>$d && echo opened; done; cat /proc/misc"
        result = pod.run("sh", "-c", script, options=("--device", tunnel, "--device", "/dev/fuse"))
    finally:
        tunnel.unlink()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("opened\nopened\n")
    assert "200 tun\n" in result.stdout


def test_nobody_who_may_make_nodes_reads_the_guests_disk(pod: Pod) -> None:
    script = "mknod /dev/disk b 254 0 && echo made; dd if=/dev/disk bs=512 count=1 2>&1"
    result = pod.run("sh", "-c", script)
    assert result.stdout == "made\ndd: can't open '/dev/disk': Operation not permitted\n"


def test_a_privileged_container_with_all_devices_of_the_host_is_told_what_to_set(pod: Pod) -> None:
    result = pod.run("true", options=("--privileged",))
    assert result.returncode == 1
    assert "set privileged_without_host_devices = true for this runtime" in result.stderr


def test_a_privileged_container_without_them_runs(later: Node) -> None:
    options = ("--privileged", "--privileged-without-host-devices")
    result = later.run("ls", "/dev", options=options)
    assert (result.returncode, result.stderr) == (0, "")
    assert "null" in result.stdout
    assert "vda" not in result.stdout


def test_the_kernels_log_mounted_by_its_path_is_the_guests(pod: Pod) -> None:
    """Readable with the device's rule and the capability, as on a host."""
    mount = ("--mount", "type=bind,src=/dev/kmsg,dst=/dev/log,options=rbind:ro")
    allowed = ("--device", "/dev/kmsg", "--cap-add", "CAP_SYSLOG")
    script = "dd if=/dev/log bs=8192 count=1 2>/dev/null"
    assert "Linux version" in pod.run("sh", "-c", script, options=(*mount, *allowed)).stdout
    assert "Operation not permitted" in pod.run("cat", "/dev/log", options=mount).stderr


def test_a_character_device_of_the_host_as_a_mount_is_refused(pod: Pod, tmp_path: Path) -> None:
    port = tmp_path / "port"
    os.mknod(port, stat.S_IFCHR | 0o600, os.makedev(4, 64))
    result = pod.run("true", options=("--mount", f"type=bind,src={port},dst=/dev/xda,options=rbind:rw"))
    assert result.returncode == 1
    assert f"cannot share {port}: it is a device of the host" in result.stderr
