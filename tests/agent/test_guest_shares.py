"""What containers have of the shared directory: places in volumes, and what is forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.shares import SharedFiles


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    volume = tmp_path / "shared" / ".volumes" / "0"
    (volume / "a" / "b").mkdir(parents=True)
    (volume / "file").write_text("content")
    (volume / "link").symlink_to("a")
    (volume / "a" / "out").symlink_to("/etc")
    return tmp_path / "shared"


@pytest.fixture
def shares(shared: Path, tmp_path: Path) -> SharedFiles:
    return SharedFiles(str(shared), str(tmp_path / "memory"), str(tmp_path / "scratch"))


def spec(*sources: object) -> dict[str, Any]:
    return {"root": {"path": "/"}, "mounts": [{"source": str(source)} for source in sources]}


@pytest.mark.parametrize("inside", ["link", "link/b", "a/out", "a/out/passwd", "file/x", "a/../file", "a//b"])
def test_no_link_in_a_volume_is_followed(shares: SharedFiles, shared: Path, inside: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"symbolic link|plain path"):
        shares.prepare("c", spec(f"{shared}/.volumes/0/{inside}"))
    shares.release("c")


def test_what_is_not_in_a_volume_is_named_as_it_is(shares: SharedFiles, shared: Path, tmp_path: Path) -> None:
    sources = ["proc", "/etc/hosts", f"{shared}/.volumes/0", f"{shared}/c/rootfs"]
    made = spec(*sources)
    shares.prepare("c", made)
    assert made == spec(*sources)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_place_in_a_volume_is_bound_for_one_container(
    shares: SharedFiles, shared: Path, tmp_path: Path
) -> None:
    made = spec(f"{shared}/.volumes/0/a", f"{shared}/.volumes/0/file")
    shares.prepare("c", made)
    try:
        directory, file = (Path(mount["source"]) for mount in made["mounts"])
        assert directory.is_relative_to(tmp_path / "scratch" / "c")
        assert directory.samefile(shared / ".volumes/0/a")
        assert file.read_text() == "content"
    finally:
        shares.release("c")
    assert not (tmp_path / "scratch" / "c").exists()
    assert (shared / ".volumes/0/a/b").is_dir()


def test_what_the_host_has_removed_is_looked_up_once_more(shares: SharedFiles, shared: Path) -> None:
    """On a file system that may be written, nothing is left of the question."""
    shares.prepare("c", spec(f"{shared}/.volumes/0", f"{shared}/.volumes/1"))
    shares.forget_removed()
    assert os.listdir(shared / ".volumes") == ["0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_part_of_a_volume_in_memory_is_made_like_the_volume(shares: SharedFiles, tmp_path: Path) -> None:
    volume = tmp_path / "memory/2a"
    volume.mkdir(parents=True)
    os.chown(volume, 7, 8)
    volume.chmod(0o2770)
    made = spec(volume, f"{volume}/a/b")
    shares.prepare("c", made)
    try:
        assert made["mounts"][0]["source"] == str(volume)
        assert Path(made["mounts"][1]["source"]).samefile(volume / "a/b")
        for path in (volume / "a", volume / "a/b"):
            found = path.stat()
            assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o2770, 7, 8)
    finally:
        shares.release("c")


@pytest.mark.parametrize("inside", ["out", "out/x", "a/../b", "a//b"])
def test_no_link_in_a_volume_in_memory_is_followed(shares: SharedFiles, tmp_path: Path, inside: str) -> None:
    (tmp_path / "memory/2a").mkdir(parents=True)
    (tmp_path / "memory/2a/out").symlink_to(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"symbolic link|plain path"):
        shares.prepare("c", spec(f"{tmp_path}/memory/2a/{inside}"))
    shares.release("c")
    assert not (tmp_path / "x").exists()
