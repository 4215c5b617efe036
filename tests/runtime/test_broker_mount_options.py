"""What containerd says about a mount, understood."""

from __future__ import annotations

import os

import pytest

from kata_runtime import syscalls
from kata_runtime.broker import mounts
from kata_runtime.broker.errors import RequestRefusedError


@pytest.mark.parametrize(
    ("options", "flags", "bind", "data"),
    [
        ([], 0, None, ""),
        (["rbind", "ro"], syscalls.MS_RDONLY, True, ""),
        (["bind", "rw"], 0, False, ""),
        (["ro", "rw"], 0, None, ""),
        (["rw", "ro"], syscalls.MS_RDONLY, None, ""),
        (
            ["nosuid", "nodev", "noexec"],
            syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
            None,
            "",
        ),
        (["noatime", "atime", "relatime", "defaults", ""], syscalls.MS_RELATIME, None, ""),
        (["index=off", "lowerdir=/a:/b", "ro"], syscalls.MS_RDONLY, None, "index=off,lowerdir=/a:/b"),
    ],
)
def test_options(options: list[str], flags: int, bind: bool | None, data: str) -> None:
    parsed = mounts.parse_options(options)
    assert (parsed.flags, parsed.bind, parsed.data) == (flags, bind, data)


@pytest.mark.parametrize("option", ["remount", "loop", "rshared", "move"])
def test_options_that_would_do_something_else_are_refused(option: str) -> None:
    with pytest.raises(RequestRefusedError, match=option):
        mounts.parse_options(["ro", option])


def test_flags_of_a_bind_mount() -> None:
    attributes = mounts.parse_options(["ro", "nodev", "sync", "noatime"]).attributes
    assert attributes == syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOATIME


SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def test_an_image_of_many_layers_fits_by_a_common_directory() -> None:
    lowers = [f"{SNAPSHOTS}/{number}/fs" for number in range(120)]
    base, data = mounts.compact(f"index=off,upperdir={SNAPSHOTS}/200/fs,lowerdir={':'.join(lowers)}")
    assert base == SNAPSHOTS
    assert f"upperdir={SNAPSHOTS}/200/fs" in data.split(",")
    relative = data.split("lowerdir=")[1].split(":")
    assert [os.path.join(base, lower) for lower in relative] == lowers
    assert len(data) <= mounts.MAX_DATA


def test_a_single_layer_is_relative_to_its_parent() -> None:
    assert mounts.compact("lowerdir=/a/b/fs") == ("/a/b", "lowerdir=fs")


@pytest.mark.parametrize("data", ["lowerdir=" + "/a\\:b" * 1000, "lowerdir=a:b," + "x" * 5000, "x" * 4096])
def test_options_that_are_too_long_even_so_are_refused(data: str) -> None:
    with pytest.raises(RequestRefusedError, match="fewer layers"):
        mounts.compact(data)
