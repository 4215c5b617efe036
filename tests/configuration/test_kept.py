"""What is kept of a configuration: it says what loading says, and counts for the very same files only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_configuration import Configuration, ConfigurationError, kept, loading
from kata_configuration.models import TABLES, Table
from kata_configuration.plain_table import PlainTable, overridden

Change = Callable[[Path], None]

TEXT = """\
[hypervisor.qemu]
path = "{program}"
kernel = "{program}"
image = "{program}"
kernel_params = 'quiet foo="a b"'
accelerator = "tcg"
shared_fs = "none"
enable_annotations = ["default_memory"]
[agent.kata]
enable_debug = true
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of which this host has everything, and of which a note is to be said."""
    monkeypatch.setattr("kata_configuration.judge.host.JIT", tmp_path / "jit")
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    path = tmp_path / "files" / "configuration.toml"
    path.parent.mkdir(mode=0o755)
    path.write_text(TEXT.format(program=program))
    return path


def load(path: Path, annotations: dict[str, str] | None = None) -> Configuration:
    return kept.load(path, source="test", annotations=annotations or {}, root=path.parent.parent / "kept")


def entry(path: Path) -> Path:
    return next((path.parent.parent / "kept").iterdir())


def is_kept(configuration: Configuration) -> bool:
    return isinstance(configuration.hypervisor, PlainTable)


def answers(table: Any) -> dict[str, Any]:
    """All that a table of a model can be asked, inner tables too."""
    names = [*type(table).model_fields, *kept.answers_of(type(table))]
    return {name: getattr(table, name) for name in names}


def assert_same(plain: Any, table: Any) -> None:
    for name, value in answers(table).items():
        found = getattr(plain, name)
        if isinstance(value, Table):
            assert_same(found, value)
        elif isinstance(value, tuple) and any(isinstance(item, Table) for item in value):
            for one, other in zip(found, value, strict=True):
                assert_same(one, other)
        else:
            assert (type(found), found) == (type(value), value), name
    assert all(plain.has_key(name) for name in type(table).model_fields)
    assert not any(plain.has_key(name) for name in kept.answers_of(type(table)))


def test_what_was_kept_is_what_was_loaded(path: Path) -> None:
    first, second = load(path), load(path)
    assert not is_kept(first)
    assert is_kept(second)
    for name in ("hypervisor", "agent", "runtime"):
        assert_same(getattr(second, name), getattr(first, name))
    taken = {name: getattr(first, name) for name in ("hypervisor", "agent", "runtime", "warnings", "origins")}
    assert second._replace(**taken) == first
    assert [str(found) for found in second.warnings] == [str(found) for found in first.warnings]
    assert len(first.warnings) == 1


@pytest.mark.parametrize("place", TABLES, ids=".".join)
def test_every_table_can_be_kept(place: tuple[str, ...]) -> None:
    table = TABLES[place].model_validate(TABLES[place].example())
    plain = json.loads(json.dumps(kept.plain_of(table)))
    assert_same(kept.value_of(plain), table)


def test_a_table_that_was_kept_cannot_change_and_has_no_other_keys(path: Path) -> None:
    load(path)
    table = load(path).hypervisor
    with pytest.raises(AttributeError, match="cannot change"):
        table.default_memory = 1
    with pytest.raises(AttributeError, match="neither a key nor an answer named other"):
        _ = table.other  # type: ignore[union-attr]


def test_a_table_with_other_answers(path: Path) -> None:
    table = load(path).hypervisor
    other = overridden(table, confined=False)
    assert (other.confined, other.kernel_params) == (False, table.kernel_params)  # type: ignore[union-attr]
    with pytest.raises(AttributeError):
        overridden(table, confinedd=False)


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace("quiet", "loud"))


def _drop_in(path: Path) -> None:
    (path.parent / "config.d").mkdir(mode=0o755)
    (path.parent / "config.d" / "10.toml").write_text("[hypervisor.qemu]\ndefault_memory = 256\n")


def _almost_a_drop_in(path: Path) -> None:
    (path.parent / "config.d").mkdir(mode=0o755)
    (path.parent / "config.d" / "10.toml.bak").write_text("")


def _truncate(path: Path) -> None:
    os.truncate(entry(path), entry(path).stat().st_size - 1)


def _forge(path: Path) -> None:
    """Change a value in the entry, and leave its hash."""
    entry(path).write_bytes(entry(path).read_bytes().replace(b"quiet", b"noisy"))


def _rewrite(body: bytes) -> Change:
    def change(path: Path) -> None:
        entry(path).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    return change


def _strip(path: Path) -> None:
    """Take a table out of the entry, and sign it again."""
    document = json.loads(entry(path).read_bytes().partition(b"\n")[2])
    del document["agent"]
    _rewrite(json.dumps(document).encode())(path)


def _let_others_read(path: Path) -> None:
    entry(path).chmod(0o644)


def _let_others_in(path: Path) -> None:
    entry(path).parent.chmod(0o755)


def _link(path: Path) -> None:
    entry(path).rename(path.parent / "elsewhere")
    (path.parent.parent / "kept" / kept.name_of(path)).symlink_to(path.parent / "elsewhere")


def _pipe(path: Path) -> None:
    place = entry(path)
    place.unlink()
    os.mkfifo(place, 0o600)


@pytest.mark.parametrize(
    "change",
    [
        *(_edit, _drop_in, _almost_a_drop_in, _truncate, _forge, _strip, _let_others_read, _let_others_in),
        *(_link, _pipe, _rewrite(b"{}"), _rewrite(b"[]"), _rewrite(b"\xff"), _rewrite(b"[" * 100_000)),
    ],
)
def test_what_has_changed_is_loaded_anew(path: Path, change: Change) -> None:
    load(path)
    change(path)
    configuration = load(path)
    assert not is_kept(configuration)
    again = loading.load(path, source="test", annotations={})
    assert configuration._replace(origins=None) == again._replace(origins=None)


@pytest.fixture
def program(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the program, which this process has loaded."""
    source = path.parent.parent / "kata_configuration" / "kept.py"
    source.parent.mkdir()
    source.touch()
    monkeypatch.setattr(kept, "__file__", str(source))
    monkeypatch.setattr(kept, "_LOADED", kept._program())
    return source


def test_another_program_judges_anew(path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path)
    assert is_kept(load(path))
    (program.parent / "judge.py").touch()
    monkeypatch.setattr(kept, "_LOADED", kept._program())
    assert not is_kept(load(path))


def test_what_was_judged_by_a_program_that_is_replaced_meanwhile_is_not_kept(
    path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the old one's name nor in the new one's: a shim that runs has modules of both."""
    program.write_text("# a newer one, which may refuse what this one takes")
    assert not is_kept(load(path))
    assert not (path.parent.parent / "kept").exists()
    monkeypatch.setattr(kept, "_LOADED", kept._program())
    assert not is_kept(load(path))
    assert is_kept(load(path))


def test_a_pod_with_an_annotation_is_judged_and_not_kept(path: Path) -> None:
    name = "io.katacontainers.config.hypervisor.default_memory"
    assert load(path, {name: "256"}).hypervisor.default_memory == 256
    assert not (path.parent.parent / "kept").exists()
    load(path)
    assert load(path, {name: "256"}).annotations == (name,)
    assert is_kept(load(path, {"io.kubernetes.cri.container-type": "sandbox"}))


def test_what_the_host_lacks_later_is_an_error(path: Path) -> None:
    load(path)
    (path.parent.parent / "program").unlink()
    with pytest.raises(ConfigurationError, match="KATA601"):
        load(path)


def test_others_who_may_change_it_later_are_an_error(path: Path) -> None:
    load(path)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="KATA003"):
        load(path)


def test_what_is_said_of_this_host_is_not_kept(path: Path) -> None:
    (path.parent.parent / "jit").write_text("0\n")
    assert len(load(path).warnings) == 2
    assert not (path.parent.parent / "kept").exists()


def test_the_oldest_entry_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    for number in range(4):
        other = path.with_name(f"{number}.toml")
        other.write_text(path.read_text())
        load(other)
    names = {found.name for found in (path.parent.parent / "kept").iterdir()}
    assert names == {kept.name_of(path.with_name(f"{number}.toml")) for number in (2, 3)}


def test_a_full_disk_keeps_nothing_and_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent.parent / "kept").mkdir(mode=0o700)

    def full(name: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        assert not is_kept(load(path))
        assert list((path.parent.parent / "kept").iterdir()) == []
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        assert not is_kept(load(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, action)
    assert list((path.parent.parent / "kept").iterdir()) == []


def test_where_nothing_can_be_kept_it_is_loaded(path: Path) -> None:
    (path.parent.parent / "kept").write_text("")
    assert not is_kept(load(path))
    assert not is_kept(load(path))


LOADED = """
import pathlib, sys
from kata_configuration import kept
path, root = map(pathlib.Path, sys.argv[1:])
kept.load(path, source="test", annotations={}, root=root)
print(*sys.modules)
"""


def test_no_model_and_no_parser_is_imported_for_it(path: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(path), str(path.parent.parent / "kept")]
    first, second = (
        set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        for _ in range(2)
    )
    costly = {"pydantic", "pydantic_core", "tomli", "kata_configuration.models", "kata_configuration.loading"}
    assert costly <= first
    assert not costly & second
