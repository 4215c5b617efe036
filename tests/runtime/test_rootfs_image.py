"""Images of root file systems: named by their content, made once, and nothing left of those that fail."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_runtime.broker import rootfs_image
from kata_runtime.broker.rootfs_image import RootfsImageError, ensure, identity

needs_maker = pytest.mark.skipif(
    shutil.which(rootfs_image.MAKER) is None, reason=f"{rootfs_image.MAKER} is missing: install erofs-utils"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small root file system, whose times are all the same."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_text("tool")
    (root / "bin/tool").chmod(0o755)
    os.link(root / "bin/tool", root / "bin/other")
    os.symlink("bin/tool", root / "link")
    still(root)
    return root


def still(root: Path) -> None:
    """Set all times back, as if nothing had happened but the change of content."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(0, 0), follow_symlinks=False)


def replace_link(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    assert identity(str(copy)) == identity(str(tree))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "bin/tool").write_text("toil"),
        lambda root: (root / "bin/tool").chmod(0o700),
        lambda root: (root / "bin").chmod(0o700),
        lambda root: (root / "bin/tool").rename(root / "bin/tol"),
        lambda root: (root / "new").touch(),
        lambda root: (root / "new").mkdir(),
        lambda root: os.mkfifo(root / "new"),
        lambda root: (root / "link").unlink(),
        lambda root: replace_link(root / "link", "bin/other"),
        lambda root: ((root / "bin/other").unlink(), (root / "bin/other").write_text("tool")),
    ],
)
def test_every_change_that_the_guest_can_see_is_another_identity(
    tree: Path, change: Callable[[Path], object]
) -> None:
    before = identity(str(tree))
    change(tree)
    still(tree)
    assert identity(str(tree)) != before


def test_a_time_is_a_change(tree: Path) -> None:
    before = identity(str(tree))
    os.utime(tree, ns=(1, 1))  # a snapshot's root is as old as the snapshot
    assert identity(str(tree)) == before
    os.utime(tree / "bin/tool", ns=(1, 1))
    assert identity(str(tree)) != before


@needs_maker
def test_an_image_is_made_once(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = Path(ensure(str(tree), str(cache)))
    assert path.read_bytes()[1024:1028] == (0xE0F5E1E2).to_bytes(4, "little")  # the magic of erofs
    assert (path.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o444, 0o700)
    made = path.stat().st_ino
    assert ensure(str(tree), str(cache)) == str(path)
    assert path.stat().st_ino == made
    (tree / "bin/tool").write_text("another")
    assert ensure(str(tree), str(cache)) != str(path)


@needs_maker
def test_the_least_recently_used_goes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs_image, "CACHE_LIMIT", 1)
    cache = tmp_path / "cache"
    ensure(str(tree), str(cache))
    (tree / "bin/tool").write_text("another")
    last = ensure(str(tree), str(cache))
    images = [str(path) for path in cache.iterdir() if path.suffix == rootfs_image.SUFFIX]
    links = [os.path.realpath(path) for path in cache.iterdir() if path.suffix == rootfs_image.LINK]
    assert images == links == [last]


@needs_maker
def test_an_image_is_named_by_its_own_content(tree: Path, tmp_path: Path) -> None:
    image = Path(ensure(str(tree), str(tmp_path / "cache")))
    assert image.stem == hashlib.sha256(image.read_bytes()).hexdigest()


def test_a_tree_that_changes_while_it_is_read_has_a_true_image(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest writes to the tree between the reading and the making: the link says what is in the image."""
    cache = tmp_path / "cache"
    asked = identity(str(tree))

    def run(command: list[str]) -> None:
        (tree / "bin/tool").write_text(f"written by the guest before {command[0]}")
        if command[0] == "cp":
            subprocess.run(command, check=True)
        else:
            Path(command[1]).write_text(identity(command[2]))  # an image that says what it holds

    monkeypatch.setattr(rootfs_image, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    image = Path(ensure(str(tree), str(cache)))
    (link,) = cache.glob(f"*{rootfs_image.LINK}")
    assert link.stem == image.read_text() != asked
    assert link.resolve() == image


def test_what_a_killed_maker_left_is_removed(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    gone = subprocess.Popen(["true"])
    gone.wait()
    abandoned, busy = (cache / f"{rootfs_image.SCRATCH}{pid}-x" for pid in (gone.pid, os.getpid()))
    for scratch in (abandoned, busy):
        (scratch / "root").mkdir(parents=True)
    rootfs_image._prune(str(cache), "")
    assert list(cache.iterdir()) == [busy]


def test_two_that_prune_at_once_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other removes everything at the worst moments: after it was listed, and before it is removed."""
    monkeypatch.setattr(rootfs_image, "CACHE_LIMIT", 0)
    contents = {"a": rootfs_image.SUFFIX, "b": rootfs_image.SUFFIX, "c": rootfs_image.LINK}
    real_scan, real_unlink, others = os.scandir, os.unlink, []

    def fill() -> None:
        for name, suffix in contents.items():
            path = tmp_path / (name + suffix)
            path.symlink_to("gone") if suffix == rootfs_image.LINK else path.write_text("image")

    def other() -> None:
        for path in tmp_path.iterdir():
            others.append(path.suffix)
            real_unlink(path)

    def scan_then_other(path: str) -> list[os.DirEntry[str]]:
        found = list(real_scan(path))
        other()
        return found

    def other_then_unlink(path: str) -> None:
        other()
        real_unlink(path)

    for name, late in (("scandir", scan_then_other), ("unlink", other_then_unlink)):
        fill()
        with monkeypatch.context() as patched:
            patched.setattr(rootfs_image.os, name, late)  # type: ignore[attr-defined]
            rootfs_image._prune(str(tmp_path), "")
        assert list(tmp_path.iterdir()) == []
    assert sorted({*others}) == sorted({*contents.values()})
    assert len(others) == 2 * len(contents)


def test_a_tree_that_is_too_large_is_not_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = tmp_path / rootfs_image.MAKER
    maker.write_text("#!/bin/sh\nexit 1\n")
    maker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(rootfs_image, "identity", None)
    with open(tree / "sparse", "wb") as file:
        file.truncate(rootfs_image.IMAGE_LIMIT)
    os.link(tree / "sparse", tree / "again")
    with pytest.raises(RootfsImageError, match=r"its files have 16384 MiB, an image at most 16384; use"):
        ensure(str(tree), str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_image_for_which_there_is_no_room_is_not_begun(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = tmp_path / rootfs_image.MAKER
    maker.write_text("#!/bin/sh\nexit 1\n")
    maker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    usage = shutil.disk_usage(tmp_path)._replace(free=rootfs_image.size_of(str(tree)) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RootfsImageError, match=r"and there are 0 MiB free in .*cache; make room there"):
        ensure(str(tree), str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_maker_that_fails_leaves_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = tmp_path / rootfs_image.MAKER
    maker.write_text('#!/bin/sh\necho half > "$1"\necho "no space left" >&2\nexit 1\n')
    maker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RootfsImageError, match=r"mkfs\.erofs: no space left"):
        ensure(str(tree), str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_maker_the_package_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RootfsImageError, match="install erofs-utils"):
        ensure(str(tree), str(tmp_path / "cache"))


@needs_maker
def test_the_program_runs_without_any_package(tree: Path, tmp_path: Path) -> None:
    def run(root: Path) -> subprocess.CompletedProcess[str]:
        fd = os.open(root, os.O_RDONLY)
        arguments = ["/its/name", str(fd), str(tmp_path / "cache")]
        command = [sys.executable, "-IS", rootfs_image.__file__, *arguments]
        try:
            return subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=False)
        finally:
            os.close(fd)

    tree.chmod(0o750)
    path, mode = run(tree).stdout.split()
    assert (Path(path).exists(), mode) == (True, "750")
    failed = run(tree / "bin" / "tool")
    assert failed.returncode == 1
    assert failed.stderr == "cannot make an image of /its/name: Not a directory\n"
