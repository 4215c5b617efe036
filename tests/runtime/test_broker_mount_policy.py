"""Which mounts a sandbox may have: options that are known, and after the seal those like learned ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
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


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A block device, by its node in /dev."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    command = ["losetup", "--find", "--show", str(tmp_path / "disk")]
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr}")
    # A number that was used before may still be read-only.
    subprocess.run(["blockdev", "--setrw", made.stdout.strip()], check=True)
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_device_that_somebody_else_uses_is_not_mounted(device: str) -> None:
    """The host's own disk, or that of another pod, whose name is like a learned one's."""
    policy = MountPolicy(())
    policy.learn("ext4", device, [])
    find = policy.finder("ext4", device, [])
    before = os.listdir("/proc/self/fd")
    os.close(find(device))
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount claims it
    with pytest.raises(RequestRefusedError, match="somebody else has it mounted"):
        find(device)
    os.close(claim)
    subprocess.run(["blockdev", "--setro", device], check=True)
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)
    os.close(find(device))  # a layer that pods share
    os.close(claim)
    assert os.listdir("/proc/self/fd") == before


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


def test_what_is_written_after_the_seal_is_empty_and_then_the_sandboxs_own(tmp_path: Path) -> None:
    root = tmp_path / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    for number in ("1", "2", "3"):
        (root / number / "fs").mkdir(parents=True)
    own, fresh, others = (f"{root}/{number}/fs" for number in ("1", "2", "3"))
    policy = MountPolicy({str(root.parent)})
    policy.learn("overlay", "overlay", [f"upperdir={own}", f"workdir={root}/1/work"])
    for path in (own, others):
        Path(path, "written").touch()

    def find(upper: str) -> None:
        work = f"workdir={os.path.dirname(upper)}/work"
        os.close(policy.finder("overlay", "overlay", [f"upperdir={upper}", work])(upper))

    find(own)
    find(fresh)
    Path(fresh, "written").touch()
    find(fresh)
    with pytest.raises(RequestRefusedError, match="may be another container's"):
        find(others)
    os.close(policy.finder("overlay", "overlay", [f"lowerdir={others}"])(others))
    os.close(policy.finder("bind", others, [])(others))
    with pytest.raises(RequestRefusedError, match="may be another container's"):
        policy.finder("bind", others, [], writable=True)(others)


def test_what_somebody_has_mounted_is_not_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of another runtime that runs and has not written anything."""
    layers = tmp_path / "io.containerd.snapshotter.v1.overlayfs"
    copies = tmp_path / "io.containerd.snapshotter.v1.native"
    upper, copy = layers / "snapshots" / "2" / "fs", copies / "snapshots" / "7"
    for path in (upper, copy):
        path.mkdir(parents=True)
    begin = "31 23 0:27 {} /x rw,relatime shared:1 - {} {} rw,{}"
    for path, kind, line in (
        (
            upper,
            "overlay",
            begin.format("/", "overlay", "overlay", f"upperdir={upper},workdir=/w"),
        ),
        (copy, "bind", begin.format(copy, "ext4", "/dev/vda", "discard")),
    ):
        policy = MountPolicy({str(layers), str(copies)})
        options = [f"upperdir={path}", f"workdir={path.parent}/work"] if kind == "overlay" else []
        policy.learn(kind, str(path.parent / "9"), options[:0], writable=True)
        policy.learn("overlay", "overlay", ["upperdir=/a", "workdir=/b"])
        source = "overlay" if kind == "overlay" else str(path)
        monkeypatch.setattr(mount_policy, "_read_mounts", lambda line=line: line)
        with pytest.raises(RequestRefusedError, match="or it is mounted, so it may be another container's"):
            policy.finder(kind, source, options, writable=True)(str(path))
        monkeypatch.setattr(mount_policy, "_read_mounts", lambda: begin.format("/", "ext4", "/dev/vda", "x"))
        os.close(policy.finder(kind, source, options, writable=True)(str(path)))


def test_what_is_claimed_is_what_a_container_writes_to(tmp_path: Path) -> None:
    copy = tmp_path / "io.containerd.snapshotter.v1.native" / "snapshots" / "7"
    copy.mkdir(parents=True)
    (tmp_path / "link").symlink_to(copy)

    def of(kind: str, source: str, *options: str, writable: bool = True) -> list[str]:
        return mount_policy.claimed(kind, source, options, writable=writable)

    assert of("overlay", "overlay", "lowerdir=/a", f"upperdir={tmp_path}/link", "workdir=/b") == [str(copy)]
    assert of("overlay", "overlay", "lowerdir=/a") == []
    assert of("bind", str(copy)) == [str(copy)]
    assert of("bind", str(copy), writable=False) == []
    assert of("bind", "/srv/root") == []  # who shares one says so himself
    assert of("ext4", "/dev/vdb") == []


def test_a_copy_of_the_native_snapshotter_is_never_empty(tmp_path: Path) -> None:
    root = tmp_path / "io.containerd.snapshotter.v1.native"
    (copy := root / "snapshots" / "7").mkdir(parents=True)
    (copy / "bin").touch()
    policy = MountPolicy({str(root)})
    os.close(policy.finder("bind", str(copy), [], writable=True)(str(copy)))


@pytest.mark.parametrize("linked", [False, True])
def test_what_lies_in_another_containers_copy_is_not_fresh(tmp_path: Path, linked: bool) -> None:
    """Its own directory is mounted, or another pod's, and so found; what is in there has neither mark."""
    root = tmp_path / "io.containerd.snapshotter.v1.native"
    if linked:
        (home := tmp_path / "elsewhere").mkdir()
        root.symlink_to(home)
    for number in ("2", "3", "4"):
        (root / "snapshots" / number / "etc" / "empty").mkdir(parents=True)
    policy = MountPolicy({str(root)})
    policy.learn("bind", f"{root}/snapshots/2", [], writable=True)
    real = os.path.realpath(root)
    inside = [f"{top}/snapshots/3/{path}" for top in (root, real) for path in ("etc", "etc/empty")]
    for path in (*inside, f"{root}/snapshots", real):
        with pytest.raises(RequestRefusedError, match=r"may be another container's|not among containerd's"):
            policy.finder("bind", path, [], writable=True)(path)
    os.close(policy.finder("bind", f"{root}/snapshots/4", [], writable=True)(f"{root}/snapshots/4"))


@pytest.mark.parametrize("name", ["io.containerd.snapshotter.v1.native/snapshots", "proxy"])
def test_no_work_directory_is_another_containers_copy(tmp_path: Path, name: str) -> None:
    """The kernel removes what is in the directory `work` of a work directory."""
    root = tmp_path / name
    for number in ("2", "3"):
        (root / number / "work").mkdir(parents=True)
    policy = MountPolicy(())
    policy.learn("bind", f"{root}/2", [], writable=True)
    for home in (root, root / "2" / ".."):
        options = [f"lowerdir={root}/2", f"upperdir={home}/2", f"workdir={home}/3"]
        with pytest.raises(RequestRefusedError, match="in a directory of that container's alone"):
            policy.finder("overlay", "overlay", options)


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
