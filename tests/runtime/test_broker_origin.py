"""The broker's mount namespace: what of the host nobody can change by a descriptor that comes from there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from forked import in_child
from kata_runtime import syscalls
from kata_runtime.broker import origin
from kata_runtime.broker.origin import Origin

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")


def refusals(path: str) -> list[str]:
    """Why what virtiofsd may do to a file fails for a device. What does not fail changes nothing."""
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"usable")
    found = os.fstat(descriptor)
    why = []
    for change in (
        lambda: os.fchmod(descriptor, stat.S_IMODE(found.st_mode)),
        lambda: os.fchown(descriptor, found.st_uid, found.st_gid),
        lambda: os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns)),
        lambda: os.removexattr(descriptor, "security.absent"),
        lambda: os.chmod(f"/proc/self/fd/{descriptor}", stat.S_IMODE(found.st_mode)),
    ):
        try:
            change()  # type: ignore[no-untyped-call]
        except OSError as error:
            why.append(errno.errorcode[error.errno or 0])
        else:
            why.append("")
    return why


def test_no_child_changes_the_host_s_devices_by_what_it_is_given() -> None:
    """Attack: a guest that owns virtiofsd takes /dev/null, a standard stream of it, from the host's users."""

    def attack() -> list[str]:
        Origin.leave()
        return refusals("/dev/null")

    assert in_child(attack) == ["EROFS"] * 5
    assert os.access("/dev", os.W_OK)  # the host's own mount is as it was


def test_devices_that_are_no_mount_of_their_own_become_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attack() -> list[str]:
        syscalls.unshare_mounts()
        syscalls.mount("devices", str(tmp_path), "tmpfs")
        (directory := tmp_path / "dev").mkdir()
        os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        monkeypatch.setattr(origin, "_DEVICES", str(directory))
        Origin.leave()
        return refusals(str(directory / "null"))

    assert in_child(attack) == ["EROFS"] * 5
