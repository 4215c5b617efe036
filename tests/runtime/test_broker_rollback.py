"""The rollback journal on disk, and the path scope in which the broker may act."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.broker import cleanup, rollback
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.rollback import RollbackJournal, is_recorded

HEADER = {"sandbox": "x", "namespace": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_what_was_pushed_and_not_dropped_is_loaded_in_order(directory: int) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    numbers = [journal.push("remove", path=f"/{name}") for name in "abc"]
    journal.drop(numbers[1])
    journal.close()
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert loaded.header == HEADER
    assert [entry["path"] for entry in loaded.entries.values()] == ["/a", "/c"]
    assert loaded.unreadable == 0


def test_no_file_is_no_journal(directory: int) -> None:
    assert RollbackJournal.load(directory) is None


def test_a_torn_last_line_is_an_effect_that_was_never_made(directory: int, tmp_path: Path) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    journal.push("remove", path="/a")
    journal.push("remove", path="/b")
    journal.close()
    whole = (tmp_path / rollback.NAME).read_bytes()
    second = whole.index(b'{"n":2')
    for cut in range(second, len(whole)):
        (tmp_path / rollback.NAME).write_bytes(whole[:cut])
        loaded = RollbackJournal.load(directory)
        assert loaded is not None
        assert [entry["path"] for entry in loaded.entries.values()] == ["/a"]
        assert loaded.unreadable == 0


def test_a_line_that_is_unreadable_is_counted_and_hides_no_other(directory: int, tmp_path: Path) -> None:
    lines = [
        json.dumps(HEADER),
        '{"n":1,"undo":"remove","path":"/a"}',
        '{"n":2,"un',
        '{"n":3,"undo":"remove","path":"/c"}',
    ]
    (tmp_path / rollback.NAME).write_text("\n".join(lines) + "\n")
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert [entry["path"] for entry in loaded.entries.values()] == ["/a", "/c"]
    assert loaded.unreadable == 1


@given(st.binary(max_size=300))
def test_any_file_can_be_loaded(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("rollback")
    (path / rollback.NAME).write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert RollbackJournal.load(fd) is not None
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "line",
    [
        *(
            '{"n":2,"path":"/a"}',
            '{"n":2,"undo":7}',
            '{"n":"2","undo":"remove"}',
            '{"n":1e400,"undo":"remove"}',
        ),
        *('{"done":[1]}', '{"done":"1"}', "[]", "7", "null", "{}", '{"sandbox":7}', "[" * 100000),
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_entry_is_counted(directory: int, tmp_path: Path, line: str) -> None:
    (tmp_path / rollback.NAME).write_text(
        f'{json.dumps(HEADER)}\n{{"n":1,"undo":"remove","path":"/a"}}\n{line}\n'
    )
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert (loaded.header, list(loaded.entries), loaded.unreadable) == (HEADER, [1], 1)
    assert loaded.find("remove", "/a") == [1]


@pytest.mark.parametrize(
    ("fields", "processes", "paths"),
    [
        ({"shim": [7, 8], "bundle": "/b", "socket": "/s"}, [(7, 8), None], ["/b", "/s"]),
        ({"shim": [7], "broker": ["7", "8"], "bundle": 7, "socket": "/\0"}, [None, None], ["", ""]),
        ({"shim": 7, "broker": [2**22 + 1, 8], "bundle": None}, [None, None], ["", ""]),
        ({"shim": [0, 8], "broker": [-1, 8], "bundle": []}, [None, None], ["", ""]),
    ],
)
def test_a_damaged_header_names_nothing(
    directory: int, fields: dict[str, Any], processes: list[object], paths: list[str]
) -> None:
    RollbackJournal.create(directory, {**HEADER, **fields}).close()
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert [loaded.process(role) for role in ("shim", "broker")] == processes
    assert [loaded.path(name) for name in ("bundle", "socket")] == paths


def test_the_file_does_not_grow_without_end(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "COMPACT_AFTER", 5)
    journal = RollbackJournal.create(directory, HEADER)
    kept = journal.push("remove", path="/kept")
    for index in range(100):
        journal.drop(journal.push("remove", path=f"/{index}"))
    journal.close()
    assert len((tmp_path / rollback.NAME).read_text().splitlines()) < 20
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert list(loaded.entries) == [kept]
    assert loaded.header == HEADER
    assert os.listdir(tmp_path) == [rollback.NAME]


def test_a_full_file_system_leaves_no_half_line(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    journal.push("remove", path="/a")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    with pytest.raises(OSError, match="cannot write"):
        journal.push("remove", path="/b")
    monkeypatch.undo()
    journal.push("remove", path="/c")
    journal.close()
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert [entry["path"] for entry in loaded.entries.values()] == ["/a", "/c"]


def test_a_full_file_system_does_not_lose_what_is_recorded(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "COMPACT_AFTER", 2)
    journal = RollbackJournal.create(directory, HEADER)
    numbers = [journal.push("remove", path=f"/{name}") for name in "abcdef"]
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    for number in numbers[:4]:
        journal.drop(number)  # neither a line nor a new file can be written
    monkeypatch.undo()
    journal.push("remove", path="/g")
    journal.close()
    assert [entry["path"] for entry in journal.entries.values()] == ["/e", "/f", "/g"]
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert [entry["path"] for entry in loaded.entries.values()] == ["/a", "/b", "/c", "/d", "/e", "/f", "/g"]


# -- where -------------------------------------------------------------------------------------------------


@pytest.fixture
def scope(tmp_path: Path) -> Iterator[PathScope]:
    (tmp_path / "shared" / "c1").mkdir(parents=True)
    (tmp_path / "bundle" / "rootfs").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    fds = [os.open(tmp_path / name, os.O_PATH) for name in ("shared", "bundle")]
    made = PathScope(str(tmp_path / "shared"), fds[0], str(tmp_path / "bundle"), fds[1])
    yield made
    made.close()


@pytest.mark.parametrize("path", ["shared/a", "shared/c1/b", "bundle/rootfs", "bundle/rootfs/a"])
def test_inside(scope: PathScope, tmp_path: Path, path: str) -> None:
    with scope.reach(str(tmp_path / path)) as place:
        assert os.path.realpath(f"/proc/self/fd/{place.parent}") == str((tmp_path / path).parent)
        assert place.name == os.path.basename(path)


@pytest.mark.parametrize(
    "path",
    [
        "outside/a",
        "shared",
        "shared/",
        "shared/..",
        "shared/../outside/a",
        "shared/c1/../../outside/a",
        "shared//c1",
        "shared/./c1",
        "sharedd/a",
        "bundle/config.json",
        "bundle/rootfs2",
        "bundle",
    ],
)
def test_outside(scope: PathScope, tmp_path: Path, path: str) -> None:
    with pytest.raises(RequestRefusedError):
        scope.reach(f"{tmp_path}/{path}")


def test_a_link_on_the_way_is_not_followed(scope: PathScope, tmp_path: Path) -> None:
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(RequestRefusedError, match="no directory"):
        scope.reach(str(tmp_path / "shared/link/a"))


def test_a_link_at_the_end_is_not_opened_and_only_itself_removed(scope: PathScope, tmp_path: Path) -> None:
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "outside")
    with scope.reach(str(tmp_path / "shared/link")) as place:
        with pytest.raises(RequestRefusedError, match="symbolic link"):
            place.open()
        place.remove()
    assert (tmp_path / "outside").is_dir()


# -- rolled back -------------------------------------------------------------------------------------------


def roll_back(directory: int, scope: PathScope) -> list[str]:
    journal = RollbackJournal.load(directory)
    assert journal is not None
    return cleanup.roll_back(journal, scope, set(), mounted=False)


def test_a_rollback_removes_what_is_recorded_and_nothing_else(
    directory: int, scope: PathScope, tmp_path: Path
) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    shared = tmp_path / "shared"
    journal.push("remove", path=str(shared / "c1"))
    journal.push("remove", path=str(shared / "c1" / "file"))
    journal.push("remove", path=str(shared / "full"))
    journal.push("remove", path=str(tmp_path / "outside"))
    journal.close()
    (shared / "c1" / "file").touch()
    (shared / "full").mkdir()
    (shared / "full" / "of data").write_text("precious")
    left = roll_back(directory, scope)
    assert not (shared / "c1").exists()
    assert (shared / "full" / "of data").read_text() == "precious"
    assert (tmp_path / "outside").is_dir()
    assert [line.partition(":")[0] for line in left] == [
        f"cannot undo remove {tmp_path}/outside",
        f"cannot undo remove {shared}/full",
    ]


def test_a_rollback_can_be_repeated(directory: int, scope: PathScope, tmp_path: Path) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    journal.push("remove", path=str(tmp_path / "shared/c1"))
    journal.push("unmount", path=str(tmp_path / "shared/c1"))
    journal.push("process", pid=os.getpid(), start=1, name="qemu")  # this pid, but not this process
    journal.push("cgroup", path="/sys/fs/cgroup/no/such", origin="/sys/fs/cgroup")
    journal.close()
    assert roll_back(directory, scope) == []
    assert roll_back(directory, scope) == []


def test_an_entry_of_an_unknown_kind_is_reported(directory: int, scope: PathScope) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    journal.push("format", path="/dev/sda")
    journal.close()
    assert roll_back(directory, scope) == [
        "cannot undo format /dev/sda: this version of the runtime knows no such entry: 'format'"
    ]


@pytest.mark.parametrize(
    "fields",
    [
        *({"undo": "remove"}, {"undo": "remove", "path": 7}, {"undo": "remove", "path": "/\0"}),
        *({"undo": "process"}, {"undo": "process", "pid": "7", "start": 1}, {"undo": "cgroup", "path": []}),
        {"undo": "process", "pid": 10**30, "start": 1},
    ],
    ids=str,
)
def test_a_damaged_entry_is_reported_and_hides_no_other(
    directory: int, scope: PathScope, tmp_path: Path, fields: dict[str, object]
) -> None:
    entries = [{"n": 1, "undo": "remove", "path": str(tmp_path / "shared/c1")}, {"n": 2, **fields}]
    lines = [json.dumps(line) for line in (HEADER, *entries)]
    (tmp_path / rollback.NAME).write_text("\n".join(lines) + "\n")
    left = roll_back(directory, scope)
    assert left
    assert all(line.startswith(f"cannot undo {fields['undo']} ") for line in left)
    assert not (tmp_path / "shared/c1").exists()


def test_a_directory_is_cleared_one_level_deep(tmp_path: Path) -> None:
    home = tmp_path / "sandbox"
    (home / "shared" / "c1").mkdir(parents=True)
    (home / "record.json").touch()
    fd = os.open(home, os.O_RDONLY)
    left = cleanup.clear(fd, str(home))
    assert left == [f"cannot remove {home}/shared: Directory not empty"]
    assert os.listdir(home) == ["shared"]
    (home / "shared" / "c1").rmdir()
    assert cleanup.clear(fd, str(home)) == []
    assert not home.exists()
    home.mkdir()  # another sandbox of the same name
    assert cleanup.clear(fd, str(home)) == []
    assert home.exists()
    os.close(fd)


def test_what_any_sandbox_has_recorded_is_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        directory = os.open(tmp_path / name, os.O_RDONLY)
        journal = RollbackJournal.create(directory, HEADER)
        number = journal.push("rmgroup", path=f"/{name}")
        if name == "two":
            journal.drop(number)
        journal.close()
        os.close(directory)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / rollback.NAME).write_text('{"sandbox":"x"}\n{"n":1,"path":"/one"}\n')
    found = [is_recorded(str(tmp_path), "rmgroup", path) for path in ("/one", "/two", "/three")]
    assert found == [True, False, False]
    assert not is_recorded(str(tmp_path), "cgroup", "/one")


def test_a_sandbox_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    journal = RollbackJournal.create(directory, {"sandbox": "s"})
    monkeypatch.setattr(rollback, "MAX_ENTRIES", 3)
    first, *_ = [journal.push("remove", path=f"/{number}") for number in range(3)]
    with pytest.raises(RequestRefusedError, match="the sandbox has 3 mounts, directories, files"):
        journal.push("remove", path="/3")
    journal.drop(first)
    monkeypatch.setattr(rollback, "MAX_BYTES", 200)
    with pytest.raises(RequestRefusedError, match="0 KiB"):
        journal.push("remove", path="/" + "x" * 200)
    journal.push("remove", path="/4")
    journal.close()
    os.close(directory)


def test_the_limits_are_reached_and_not_passed(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last byte that there is room for is taken; what is dropped makes room for as much."""
    line = len(b'{"n":1,"undo":"remove","path":"/a"}\n')
    journal = RollbackJournal.create(directory, HEADER)
    monkeypatch.setattr(rollback, "MAX_BYTES", 2 * line)
    numbers = [journal.push("remove", path=f"/{name}") for name in "ab"]
    for _ in range(5):
        with pytest.raises(RequestRefusedError):
            journal.push("remove", path="")
        journal.drop(numbers.pop())
        numbers.append(journal.push("remove", path="/c"))
    journal.close()


def test_what_is_refused_and_what_cannot_be_written_takes_no_number(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RollbackJournal.create(directory, HEADER)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda _fd, _data: 0)
        with pytest.raises(OSError, match=r"cannot write rollback\.jsonl: 0 of \d+ bytes") as failed:
            journal.push("remove", path="/a")
        assert failed.value.errno == errno.ENOSPC
    assert [journal.push("remove", path="/b"), journal.push("remove", path="/c")] == [1, 2]
    assert list(journal.entries) == [1, 2]
    journal.close()


@pytest.mark.parametrize(("pid", "known"), [(0, False), (1, True), (4194304, True), (4194305, False)])
def test_a_process_id_is_one_that_the_kernel_gives(directory: int, pid: int, known: bool) -> None:
    RollbackJournal.create(directory, {"sandbox": "x", "shim": [pid, 7]}).close()
    loaded = RollbackJournal.load(directory)
    assert loaded is not None
    assert loaded.process("shim") == ((pid, 7) if known else None)


def test_the_file_is_written_anew_after_so_many_and_then_after_as_many(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "COMPACT_AFTER", 3)
    journal = RollbackJournal.create(directory, HEADER)
    lines = []
    for index in range(9):
        journal.drop(journal.push("remove", path=f"/{index}"))
        lines.append(len((tmp_path / rollback.NAME).read_text().splitlines()))
    assert lines == [3, 5, 7, 1, 3, 5, 7, 1, 3]
    journal.close()


def test_no_other_file_is_followed_inherited_or_kept(directory: int, tmp_path: Path) -> None:
    """A link in the place of the journal, one in that of the new one, and what an earlier new one holds."""
    fresh, other = tmp_path / f"{rollback.NAME}.new", tmp_path / "other"
    other.write_text("another's")
    fresh.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        RollbackJournal.create(directory, HEADER)
    fresh.unlink()
    assert other.read_text() == "another's"
    journal = RollbackJournal.create(directory, HEADER)
    assert not os.get_inheritable(journal._file)
    assert (tmp_path / rollback.NAME).stat().st_mode & 0o777 == 0o600
    journal.close()
    fresh.write_text("torn\n" * 100)
    RollbackJournal.create(directory, HEADER).close()
    assert len((tmp_path / rollback.NAME).read_text().splitlines()) == 1
    (tmp_path / rollback.NAME).rename(fresh)
    (tmp_path / rollback.NAME).symlink_to(fresh)
    with pytest.raises(OSError, match="symbolic links"):
        RollbackJournal.load(directory)
