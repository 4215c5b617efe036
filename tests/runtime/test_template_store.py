"""The place of a template: it is there whole or not at all, and nobody else's files are touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_runtime.errors import StateError
from kata_runtime.template.store import TemplateStore, remove


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    """A place whose parents are not there yet."""
    return TemplateStore(tmp_path / "vm" / "template")


def make(store: TemplateStore, content: str) -> None:
    """Make a template and publish it."""
    with store.changing(), store.making() as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "state").write_text(content)
        store.publish(directory)


def names(store: TemplateStore) -> list[str]:
    """What is in the parent directory."""
    return sorted(path.name for path in store.path.parent.iterdir())


def test_a_template_takes_the_place_of_another(store: TemplateStore) -> None:
    for content in ("one", "two", "three"):
        make(store, content)
        assert (store.path / "state").read_text() == content
        assert names(store) == [".template.lock", "template"]


def test_who_has_it_open_keeps_it(store: TemplateStore) -> None:
    make(store, "one")
    with (store.path / "state").open() as file:
        make(store, "two")
        assert file.read() == "one"


def test_what_failed_leaves_the_old_one_and_nothing_else(store: TemplateStore) -> None:
    def fail(directory: Path) -> None:
        (directory / "state").write_text("half")
        raise ZeroDivisionError

    make(store, "one")
    with pytest.raises(ZeroDivisionError), store.changing(), store.making() as directory:
        fail(directory)
    assert (store.path / "state").read_text() == "one"
    assert names(store) == [".template.lock", "template"]


def test_two_do_not_change_it_at_once(store: TemplateStore) -> None:
    with (
        store.changing(),
        pytest.raises(StateError, match="another process is chang"),
        store.changing(),
    ):
        pass
    make(store, "one")


def test_a_template_is_removed(store: TemplateStore) -> None:
    make(store, "one")
    assert store.destroy()
    assert not store.destroy()
    assert names(store) == [".template.lock"]


def test_what_is_no_template_stays(tmp_path: Path) -> None:
    (tmp_path / "template" / "home").mkdir(parents=True)
    with pytest.raises(OSError, match="a template has regular files only, and it is none; remove it by hand"):
        remove(tmp_path / "template")
    assert (tmp_path / "template" / "home").is_dir()


def test_a_file_in_the_place_is_not_replaced(store: TemplateStore) -> None:
    store.path.parent.mkdir()
    store.path.write_text("mine")
    with pytest.raises(NotADirectoryError):
        make(store, "one")
    assert store.path.read_text() == "mine"
