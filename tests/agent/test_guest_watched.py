"""Copies of volumes that a kubelet brings up to date: nothing is lost, whatever step of its is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_agent.guest import watched
from kata_agent.guest.files import remove_tree
from kata_agent.guest.watched import WatchedCopies, _Copy, _Room
from volume_fixtures import AtomicVolume


@pytest.fixture
def volume(tmp_path: Path) -> AtomicVolume:
    made = AtomicVolume(tmp_path / "volume")
    made.write({"key": "one", "old": "x"})
    return made


@pytest.fixture
def copy(volume: AtomicVolume, tmp_path: Path) -> _Copy:
    (tmp_path / "copy").mkdir()
    made = _Copy(str(volume.path), str(tmp_path / "copy"))
    made.update()
    return made


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if not path.name.startswith("..")}


def test_a_copy_has_what_the_volume_has(copy: _Copy, tmp_path: Path, volume: AtomicVolume) -> None:
    assert content(tmp_path / "copy") == {"key": "one", "old": "x"}
    volume.write({"key": "two", "new": "y"})
    copy.look()
    assert content(tmp_path / "copy") == {"key": "two", "new": "y"}
    assert {name for name in os.listdir(tmp_path / "copy") if name.startswith("..")} == {"..data", "..2026_2"}


def test_a_writer_that_is_not_done_is_looked_at_once_more(
    copy: _Copy, tmp_path: Path, volume: AtomicVolume
) -> None:
    """The link of a new key comes after the new version; one of a key that went leads to nothing."""
    (volume.path / "..2026_2").mkdir()
    (volume.path / "..2026_2/new").write_text("y")
    (volume.path / "..data_tmp").symlink_to("..2026_2")
    (volume.path / "..data_tmp").rename(volume.path / "..data")
    copy.look()
    assert not (tmp_path / "copy/key").exists()
    for name in ("key", "old"):
        (volume.path / name).unlink()
    (volume.path / "new").symlink_to("..data/new")
    copy.look()
    assert content(tmp_path / "copy") == {"new": "y"}


def test_a_version_that_vanishes_while_it_is_copied_is_left_for_the_next_look(
    copy: _Copy, tmp_path: Path, volume: AtomicVolume
) -> None:
    (volume.path / "..data").unlink()
    (volume.path / "..data").symlink_to("..2026_9")
    copy.look()
    assert content(tmp_path / "copy") == {"key": "one", "old": "x"}
    (volume.path / "..data").unlink()
    copy.look()
    volume.write({"key": "three"})
    copy.look()
    assert content(tmp_path / "copy") == {"key": "three"}


def test_a_version_that_vanishes_while_it_is_copied_first_gives_way_to_the_next(
    tmp_path: Path, volume: AtomicVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_directory = watched._copy_directory
    (tmp_path / "late").mkdir()

    def overtaken(source: int, target: int, name: str, room: _Room) -> None:
        if name == "..2026_1":
            volume.write({"key": "two"})
        copy_directory(source, target, name, room)

    monkeypatch.setattr(watched, "_copy_directory", overtaken)
    _Copy(str(volume.path), str(tmp_path / "late")).begin()
    assert content(tmp_path / "late") == {"key": "two"}
    (volume.path / "..data").unlink()
    (volume.path / "..data").symlink_to("..2026_9")
    with pytest.raises(FileNotFoundError):
        _Copy(str(volume.path), str(tmp_path / "late")).begin()


def test_directories_and_empty_files_come_along(copy: _Copy, tmp_path: Path, volume: AtomicVolume) -> None:
    volume.write({"key": ""})
    inner = volume.path / "..2026_2/inner"
    inner.mkdir(mode=0o750)
    (inner / "file").write_text("deep")
    (inner / "link").symlink_to("/etc")
    (volume.path / "inner").symlink_to("..data/inner")
    copy.update()
    assert (tmp_path / "copy/key").read_text() == ""
    assert (tmp_path / "copy/inner/file").read_text() == "deep"
    assert (tmp_path / "copy/inner").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "copy/inner/link").readlink() == Path("/etc")


HOSTILE = [
    "/",
    "..",
    "../outside",
    "..2026_1/way",
    "..2026_1/..",
    "..data/way",
    "..data",
    "..link",
    "plain",
    ".",
]
"""What a container that can write to a volume may call its newest version; ..link and way lead out."""


@pytest.mark.parametrize("link", HOSTILE)
def test_a_version_is_a_directory_in_the_volume(
    copy: _Copy, tmp_path: Path, volume: AtomicVolume, link: str
) -> None:
    """Whatever it is called, nothing beside the copy changes, and nothing is read from there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("the guest's")
    (volume.path / "..link").symlink_to(outside)
    volume.write({"key": "two"})
    (volume.path / "..2026_2/way").symlink_to(outside)
    copy.look()
    (volume.path / "..2026_2/way").unlink()
    (volume.path / "..2026_2/way").mkdir()
    (volume.path / "..2026_2/way/file").write_text("hostile")
    (volume.path / "..data").unlink()
    (volume.path / "..data").symlink_to(link.replace("2026_1", "2026_2"))
    before = content(tmp_path / "copy")
    copy.look()
    assert content(tmp_path / "copy") == before == {"key": "two"}
    remove_tree(str(volume.path / "..2026_2/way"))
    volume.write({"key": "three"})
    copy.look()
    assert content(tmp_path / "copy") == {"key": "three"}
    assert content(outside) == {"file": "the guest's"}
    assert sorted(os.listdir(tmp_path)) == ["copy", "outside", "volume"]


@pytest.mark.parametrize("link", HOSTILE)
def test_no_link_but_a_writers_makes_a_volume(tmp_path: Path, link: str) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/..data").symlink_to(link)
    if link != "..link":  # a name as a writer's, of which the copy finds that nothing is there
        assert not WatchedCopies(pause=1e6).add(str(tmp_path / "volume"), str(tmp_path / "copy"))
        assert not (tmp_path / "copy").exists()


def test_what_others_put_beside_the_links_makes_it_no_volume(tmp_path: Path, volume: AtomicVolume) -> None:
    (volume.path / "file").touch()
    assert not WatchedCopies(pause=1e6).add(str(volume.path), str(tmp_path / "copy"))


def enlarge(version: Path) -> None:
    with (version / "key").open("r+") as file:
        file.truncate(1 << 40)


def multiply(version: Path) -> None:
    for number in range(5000):
        (version / f"{number}").touch()


def deepen(version: Path) -> None:
    (version / "/".join("d" * 100)).mkdir(parents=True)


@pytest.mark.parametrize("grow", [enlarge, multiply, deepen])
def test_a_copy_has_a_size(
    tmp_path: Path, volume: AtomicVolume, grow: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """What is too large at first is no copy; what becomes too large stays as it was, and the log says so."""
    copies = WatchedCopies(pause=1e6)
    assert copies.add(str(volume.path), str(tmp_path / "copy"))
    volume.write({"key": "two"})
    grow(volume.path / "..2026_2")
    for _ in range(3):
        copies._copies[str(tmp_path / "copy")].look()
    assert content(tmp_path / "copy") == {"key": "one", "old": "x"}
    assert capfd.readouterr().err.count("too large or too deep") == 1
    assert not copies.add(str(volume.path), str(tmp_path / "another"))
    assert not (tmp_path / "another").exists()


def test_a_file_that_grows_is_copied_as_it_was_opened(
    copy: _Copy, tmp_path: Path, volume: AtomicVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    sendfile = os.sendfile

    def grown(out: int, source: int, offset: None, count: int) -> int:
        with (volume.path / "..2026_2/key").open("a") as file:
            file.write("more")
        return sendfile(out, source, offset, count)

    monkeypatch.setattr(os, "sendfile", grown)
    volume.write({"key": "two"})
    copy.look()
    assert content(tmp_path / "copy") == {"key": "two"}
