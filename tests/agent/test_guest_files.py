"""CopyFile: what it makes, and what no path may do."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.files import copy_file, remove_tree
from kata_agent.protos import agent_pb2


def request(
    path: Path | str, data: bytes, *, mode: int = 0o644, offset: int = 0, size: int = -1
) -> agent_pb2.CopyFileRequest:
    return agent_pb2.CopyFileRequest(
        path=str(path),
        data=data,
        file_mode=mode,
        dir_mode=0o750,
        uid=os.getuid(),
        gid=os.getgid(),
        offset=offset,
        file_size=len(data) if size < 0 else size,
    )


def test_file_with_mode_and_parents(tmp_path: Path) -> None:
    copy_file(request(tmp_path / "a/b/file", b"text", mode=stat.S_IFREG | 0o4755), str(tmp_path))
    assert (tmp_path / "a/b/file").read_bytes() == b"text"
    assert (tmp_path / "a/b/file").stat().st_mode & 0o7777 == 0o4755
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o750


def test_file_in_pieces_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    copy_file(request(target, b"first", size=11), str(tmp_path))
    assert target.read_bytes() == b"old"
    copy_file(request(target, b"second", offset=5, size=11), str(tmp_path))
    assert target.read_bytes() == b"firstsecond"
    assert os.listdir(tmp_path) == ["file"]


def test_pieces_out_of_place(tmp_path: Path) -> None:
    target = tmp_path / "file"
    copy_file(request(target, b"first", size=11), str(tmp_path))
    for offset, data in ((4, b"second"), (6, b"econd"), (5, b"too much"), (-1, b"x")):
        with pytest.raises(InvalidRequestError):
            copy_file(request(target, data, offset=offset, size=11), str(tmp_path))
    assert not target.exists()


def test_directory_and_link(tmp_path: Path) -> None:
    copy_file(request(tmp_path / "d", b"", mode=stat.S_IFDIR | 0o1777), str(tmp_path))
    copy_file(request(tmp_path / "d", b"", mode=stat.S_IFDIR | 0o1770), str(tmp_path))
    assert (tmp_path / "d").stat().st_mode == stat.S_IFDIR | 0o1770
    for target in (b"../anywhere", b"elsewhere"):
        copy_file(request(tmp_path / "link", target, mode=stat.S_IFLNK), str(tmp_path))
    assert (tmp_path / "link").readlink() == Path("elsewhere")


def test_file_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    (base / "file").symlink_to(victim)
    copy_file(request(base / "file", b"new"), str(base))
    assert victim.read_bytes() == b"safe"
    assert not (base / "file").is_symlink()


def test_no_path_leads_out(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (base / "link").symlink_to(outside)
    (base / "self").symlink_to(".")
    paths = [
        f"{base}/../outside/x",
        f"{base}/link/x",
        f"{base}/self/x",
        f"{base}/./x",
        f"{base}//x",
        f"{base}/x/",
        f"{base}",
        f"{base}/",
        f"{base}-other/x",
        "/etc/x",
        "relative/x",
        f"{base}/x\0y",
    ]
    for path in paths:
        with pytest.raises(InvalidRequestError):
            copy_file(request(path, b"data"), str(base))
    assert os.listdir(outside) == []
    assert sorted(os.listdir(base)) == ["link", "self"]


def test_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"first")
    (base / ".file.part").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        copy_file(request(base / "file", b"second", offset=5, size=11), str(base))
    copy_file(request(base / "file", b"data"), str(base))
    assert victim.read_bytes() == b"first"


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="of no known kind"):
        copy_file(request(tmp_path / "x", b"", mode=stat.S_IFCHR | 0o666), str(tmp_path))


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").touch()
    (tree / "a/link").symlink_to(tmp_path / "kept")
    remove_tree(str(tree))
    remove_tree(str(tree))
    assert not tree.exists()
    tree.symlink_to(tmp_path / "kept")
    remove_tree(str(tree))
    assert not tree.is_symlink()
    assert (tmp_path / "kept/file").exists()
