"""Which mounts a sandbox may have: options that are known, and after the seal those like learned ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_runtime.broker import mount_policy
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.mount_policy import MountPolicy
from kata_runtime.broker.operations.checks import FILESYSTEMS


def test_every_file_system_has_its_options() -> None:
    assert tuple(mount_policy._OPTIONS) == FILESYSTEMS


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("erofs", "device=/etc/shadow"),
        ("erofs", "fsid=x"),
        ("btrfs", "device=/dev/sda"),
        ("btrfs", "subvol=/a,device=/dev/sda"),
        ("xfs", "logdev=/dev/sda"),
        ("xfs", "rtdev=/dev/sda"),
        ("ext4", "journal_path=/dev/sda"),
        ("ext4", "journal_dev=0x801"),
        ("ext4", "errors=panic"),
        ("ext4", "usrjquota=/etc/shadow"),
        ("squashfs", "errors=panic"),
        ("overlay", "lowerdir=/a,upperdir=/etc"),
        ("overlay", "creds=on"),
        ("overlay", "context=x,device=/etc/shadow"),
        ("bind", "device=/etc/shadow"),
        ("zfs", "mntpoint=/etc"),
    ],
)
def test_an_option_that_is_not_known_is_refused_before_the_seal_too(kind: str, option: str) -> None:
    with pytest.raises(RequestRefusedError, match=f"the mount option .* of {kind} is not allowed"):
        MountPolicy(()).learn(kind, "/dev/null", [option])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("overlay", ["index=off", "lowerdir=/a:/b", "upperdir=/c", "workdir=/d", "volatile", "userxattr"]),
        ("overlay", ['context="system_u:object_r:container_file_t:s0:c1,c2"', "lowerdir=/a"]),
        ("ext4", ["discard", "data=ordered", "errors=remount-ro"]),
        ("xfs", ["nouuid", "discard"]),
        ("btrfs", ["subvol=/io.containerd.snapshotter.v1.btrfs/active/3"]),
        ("zfs", ["zfsutil"]),
        ("bind", []),
    ],
)
def test_the_options_of_containerds_snapshotters_are_allowed(kind: str, options: list[str]) -> None:
    policy = MountPolicy(())
    policy.learn(kind, "/dev/mapper/pool-snap-1", options)
    policy.finder(kind, "/dev/mapper/pool-snap-1", options)


def test_after_the_seal_there_are_learned_file_systems_only() -> None:
    policy = MountPolicy(())
    policy.learn("overlay", "overlay", ["lowerdir=/a", "index=off"])
    policy.finder("bind", "/a", [])
    policy.finder("overlay", "overlay", ["lowerdir=/b:/c", "upperdir=/d", "workdir=/e"])
    for kind in set(FILESYSTEMS) - {"bind", "overlay"}:
        with pytest.raises(RequestRefusedError, match="its first container has no such file system"):
            policy.finder(kind, "/dev/sda", [])
    with pytest.raises(RequestRefusedError, match="'metacopy=on': the sandbox is sealed, and no mount"):
        policy.finder("overlay", "overlay", ["lowerdir=/b", "metacopy=on"])


def test_a_device_is_one_like_containerds(tmp_path: Path) -> None:
    policy = MountPolicy({str(tmp_path)})
    policy.learn("ext4", "/dev/mapper/pool-snap-1", ["discard"])
    find = policy.finder("ext4", "/dev/mapper/pool-snap-22", ["discard"])
    (tmp_path / "snap-2").touch()
    os.mkfifo(tmp_path / "pool-snap-2")
    for path in (
        "/dev/sda",
        "/dev/mapper/root",
        "/dev/mapper/../pool-snap-2",
        "/dev/mapper/vg-snap-1",
        str(tmp_path / "pool-snap-2"),
        str(tmp_path / "snap-2"),
    ):
        with pytest.raises(RequestRefusedError, match="it is not named like a device that containerd gave"):
            find(path)
    with pytest.raises(FileNotFoundError):
        find("/dev/mapper/pool-snap-22")


def test_a_node_that_is_named_like_a_learned_one_is_none_outside_of_dev(tmp_path: Path) -> None:
    policy = MountPolicy({str(tmp_path)})
    policy.learn("ext4", f"{tmp_path}/snap-1", [])
    (tmp_path / "snap-2").touch()
    with pytest.raises(RequestRefusedError, match="it is not in /dev"):
        policy.finder("ext4", "", [])(f"{tmp_path}/snap-2")


def test_what_is_no_block_device_is_not_mounted() -> None:
    policy = MountPolicy(())
    policy.learn("ext4", "/dev/null", [])
    with pytest.raises(RequestRefusedError, match="it is not a block device"):
        policy.finder("ext4", "/dev/null", [])("/dev/null")


def test_a_file_in_a_snapshot_is_not_mounted(tmp_path: Path) -> None:
    """The host's kernel would parse what a guest wrote."""
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "snapshots" / "1" / "image").touch()
    policy = MountPolicy({f"{tmp_path}/snapshots"})
    policy.learn("overlay", "overlay", ["lowerdir=/a"])
    find = policy.finder("overlay", "overlay", ["lowerdir=/a"])
    with pytest.raises(RequestRefusedError, match="it is not a directory"):
        find(f"{tmp_path}/snapshots/1/image")
    os.close(find(f"{tmp_path}/snapshots/1"))


def test_a_subvolume_lies_beside_a_learned_one() -> None:
    policy = MountPolicy(())
    policy.learn("btrfs", "/dev/vdb", ["subvol=/snapshots/active/3"])
    policy.finder("btrfs", "/dev/vdb", ["subvol=/snapshots/active/4"])
    for subvolume in ("/", "/snapshots", "/snapshots/active/../../home", "/snapshots/active/3/x", "home"):
        with pytest.raises(RequestRefusedError, match="no mount of its first container has this option"):
            policy.finder("btrfs", "/dev/vdb", [f"subvol={subvolume}"])
    with pytest.raises(RequestRefusedError, match="subvolid=5"):
        policy.finder("btrfs", "/dev/vdb", ["subvolid=5"])


def test_a_dataset_lies_beside_a_learned_one() -> None:
    policy = MountPolicy(())
    policy.learn("zfs", "pool/snapshots/3", [])
    policy.finder("zfs", "pool/snapshots/4", [])
    for dataset in ("pool/home", "pool", "pool/snapshots/../home", "other/snapshots/3"):
        with pytest.raises(RequestRefusedError, match="it is not beside that of the first container"):
            policy.finder("zfs", dataset, [])


def test_a_sandbox_that_is_sealed_without_a_container_has_what_containerd_mounts_by_itself() -> None:
    policy = MountPolicy(())
    policy.finder("overlay", "overlay", ["index=off", "lowerdir=/a:/b", "upperdir=/c", "workdir=/d"])
    policy.finder("bind", "/a", [])
    with pytest.raises(RequestRefusedError, match="no mount of its first container has this option"):
        policy.finder("overlay", "overlay", ["metacopy=on", "lowerdir=/a"])
    with pytest.raises(RequestRefusedError, match="has no such file system"):
        policy.finder("ext4", "/dev/sda", [])
