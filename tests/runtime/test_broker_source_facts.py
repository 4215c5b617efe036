"""What a source is: the same files or others, and whether it lies in another."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.broker.source_facts import SourceFacts, look, unescape


def facts(path: str, *below: bytes, device: int = 1, inode: int = 1) -> SourceFacts:
    mounts = frozenset((b"7", name) for name in below)
    return SourceFacts((device, inode), (device, path.encode()), mounts, readonly=False)


@pytest.mark.parametrize(
    ("inner", "outer", "path"),
    [
        (facts("/data/a/b"), facts("/data"), b"a/b"),
        (facts("/a"), facts("/"), b"a"),
        (facts("/data"), facts("/data"), None),
        (facts("/database"), facts("/data"), None),
        (facts("/data/a", device=2), facts("/data"), None),
        (facts("/data/a", b"mounted"), facts("/data"), None),
        (facts("/data/a"), facts("/data", b"a"), None),
        (facts("/data/a/b"), facts("/data", b"a"), None),
        (facts("/data/a"), facts("/data", b"a/b"), None),
        (facts("/data/a"), facts("/data", b"ab", b"c/a"), b"a"),
    ],
)
def test_a_path_in_another_source(inner: SourceFacts, outer: SourceFacts, path: bytes | None) -> None:
    assert inner.path_below(outer) == path


def test_the_same_files_are_the_same_inode_with_the_same_mounts() -> None:
    assert facts("/a").is_same(facts("/b"))
    assert not facts("/a").is_same(facts("/a", inode=2))
    assert not facts("/a").is_same(facts("/a", b"inner"))


@pytest.mark.parametrize("name", ["plain", "with space", "tab\t\\back\nline"])
def test_what_is_read_of_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "in").mkdir(parents=True)
    outer, inner = (os.open(path, os.O_PATH) for path in (tmp_path / name, tmp_path / name / "in"))
    try:
        one, other = look(outer, recursive=True), look(inner, recursive=True)
    finally:
        os.close(outer)
        os.close(inner)
    found = (tmp_path / name).stat()
    assert (one.inode, one.below, one.readonly) == ((found.st_dev, found.st_ino), frozenset(), False)
    assert other.path_below(one) == b"in"
    assert os.fsdecode(unescape(one.home[1])).endswith(name)


def test_what_is_mounted_below_comes_along_when_it_is_asked_for() -> None:
    root = os.open("/", os.O_PATH)
    try:
        assert b"proc" in {path for _, path in look(root, recursive=True).below}
        assert look(root, recursive=False).below == frozenset()
    finally:
        os.close(root)


MEMORY = {
    "/pods/x/volumes/kubernetes.io~empty-dir/cache": True,
    "/containerd/sandboxes/x/shm": True,
    "/pods/x/volumes/kubernetes.io~secret/token": False,
    "/pods/x/volumes/kubernetes.io~empty-dir/cache/below": False,
    "/dev/shm/x": False,
}


@pytest.fixture
def tmpfs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    place = Path(f"{tmp_path}{request.param}")
    place.mkdir(parents=True)
    options = "size=3m,mode=2770,uid=7,gid=8,nosuid"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)
    (place / "part").mkdir()
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("tmpfs", "pods"), MEMORY.items(), indirect=["tmpfs"])
def test_memory_that_was_made_for_a_pod_is_known_by_where_it_is_mounted(tmpfs: Path, pods: bool) -> None:
    for path in ("", "part"):
        fd = os.open(tmpfs / path, os.O_PATH)
        try:
            found = look(fd, recursive=False).memory
        finally:
            os.close(fd)
        expected = {"kind": "tmpfs", "device": tmpfs.stat().st_dev, "path": path, "size": "3072k"}
        expected |= {"mode": 0o2770, "user": 7, "group": 8, "flags": ["nosuid"]}
        assert found == (expected if pods else None)


def test_the_hosts_own_shared_memory_is_not_a_pods() -> None:
    fd = os.open("/dev/shm", os.O_PATH)
    try:
        assert look(fd, recursive=False).memory is None
    finally:
        os.close(fd)
