"""Trees and the archives of them: the same for everybody, whatever order they were made in."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.image import cpio
from kata_runtime.image.errors import ContentError
from kata_runtime.image.tree import Entry, Tree, normal

NAMES = st.text("abcxyz-._", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def parse_newc(archive: bytes) -> dict[str, Entry]:
    """Read a newc archive by its specification, apart from the code that wrote it."""
    found: dict[str, Entry] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        values = [int(archive[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = values
        assert (uid, gid, mtime) == (0, 0, 0)
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        start = (position + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = Entry(mode, archive[start : start + size], (major, minor))
        position = (start + size + 3) // 4 * 4


@given(st.dictionaries(PATHS, st.binary(max_size=20)))
def test_an_archive_holds_the_tree_and_its_directories(files: dict[str, bytes]) -> None:
    directories = {path for path in files for other in files if other.startswith(path + "/")}
    tree = Tree()
    for path, data in files.items():
        if path not in directories:
            tree.file(path, data)
    found = parse_newc(cpio.pack(tree))
    assert {path: entry for path, entry in found.items() if stat.S_ISREG(entry.mode)} == tree.entries
    names = list(found)
    for path in names:
        parent = path.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(path)


def test_the_order_of_making_does_not_matter() -> None:
    one, two = Tree(), Tree()
    one.file("a/b", b"1")
    one.link("a-b", "a/b")
    two.link("a-b", "a/b")
    two.file("a/b", b"1")
    assert cpio.pack(one) == cpio.pack(two)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("./usr/lib/os-release", "usr/lib/os-release"),
        ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("/sbin/init", "usr/sbin/init"),
        ("./libexec/x", "libexec/x"),
        ("../../etc/passwd", "etc/passwd"),
        ("./", ""),
    ],
)
def test_paths_are_normal(path: str, expected: str) -> None:
    assert normal(path) == expected


def test_reading_follows_links() -> None:
    tree = Tree()
    tree.file("usr/lib/x/libz.so.1.2", b"z")
    tree.link("usr/lib/x/libz.so.1", "libz.so.1.2")
    tree.link("usr/lib64/absolute", "/lib/x/libz.so.1")
    tree.link("loop", "loop")
    assert tree.read("usr/lib64/absolute") == b"z"
    assert tree.read("loop") is None
    assert tree.read("absent") is None


def test_a_written_tree_has_modes_and_no_set_id_bits(tmp_path: Path) -> None:
    tree = Tree()
    tree.file("bin/tool", b"x", 0o755)
    tree.link("link", "bin/tool")
    tree.write(tmp_path / "root")
    assert stat.S_IMODE((tmp_path / "root/bin/tool").stat().st_mode) == 0o755
    assert (tmp_path / "root/link").readlink() == Path("bin/tool")


def make_package(path: Path, add: object) -> Path:
    """Make a .deb of a tar archive that `add` fills."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        add(tar)  # type: ignore[operator]
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w:xz"):
        pass
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", empty.getvalue()),
        ("data.tar.xz", content.getvalue()),
    ]
    archive = b"!<arch>\n"
    for name, data in members:
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        archive += data + b"\n" * (len(data) % 2)
    path.write_bytes(archive)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.mtime = kind, link, mode, 1000, 1700000000
    return info


def test_a_package_is_unpacked_by_choice(tmp_path: Path) -> None:
    def add(tar: tarfile.TarFile) -> None:
        tar.addfile(member("./bin", tarfile.DIRTYPE))
        program = member("./bin/su", mode=0o4755)
        program.size = 3
        tar.addfile(program, io.BytesIO(b"elf"))
        tar.addfile(member("./bin/other", tarfile.LNKTYPE, "./bin/su"))
        tar.addfile(member("./bin/sh", tarfile.SYMTYPE, "su"))
        tar.addfile(member("./usr/share/doc/readme"))

    tree = Tree()
    tree.add_package(make_package(tmp_path / "a.deb", add), lambda path: path.startswith("usr/bin/"))
    program = Entry(stat.S_IFREG | 0o755, b"elf")
    assert tree.entries == {
        "usr/bin/su": program,
        "usr/bin/other": program,
        "usr/bin/sh": Entry(stat.S_IFLNK | 0o777, b"su"),
    }


def test_a_device_in_a_package_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "a.deb", lambda tar: tar.addfile(member("dev/sda", tarfile.BLKTYPE)))
    with pytest.raises(ContentError, match="dev/sda is neither a file"):
        Tree().add_package(package, lambda _: True)


def test_a_damaged_package_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(ContentError, match=r"cannot unpack .*a\.deb"):
        Tree().add_package(tmp_path / "a.deb", lambda _: True)
