"""Every fault that was seeded in the broken files is found, at its place, and nothing else is reported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import corpus
from kata_configuration import ConfigurationError, load
from kata_configuration.tell import fixing

NAMES = corpus.names()
# The broken files that users really had, and that must never be missed.
REPORTED = {
    "misspelled-key",
    "wrong-table",
    "misspelled-table",
    "selected-table-missing",
    "initrd-of-kata",
    "kernel-missing",
    "virtiofsd-not-executable",
    "annotations-star",
    "annotation-whole-name",
    "memory-in-gib",
    "seccomp-in-quotes",
    "sandbox-obselete",
}


def test_the_corpus_is_there() -> None:
    assert len(NAMES) >= 45
    assert set(NAMES) >= REPORTED


@pytest.mark.parametrize("name", NAMES)
def test_what_was_seeded_is_found(name: str, corpus_tally: Counter[str]) -> None:
    case = corpus.read(name)
    seeded, found = Counter(case.faults), Counter(corpus.find(case))
    corpus_tally["files"] += 1
    corpus_tally["seeded"] += seeded.total()
    corpus_tally["found"] += (seeded & found).total()
    corpus_tally["unexpected"] += (found - seeded).total()
    assert seeded, "a file without a fault has no place in the corpus"
    assert list(map(str, (seeded - found).elements())) == [], "missed"
    assert list(map(str, (found - seeded).elements())) == [], "not expected"


@pytest.mark.parametrize("name", NAMES)
def test_what_has_an_error_does_not_load(name: str) -> None:
    case = corpus.read(name)
    if case.host:
        return  # loaded for this machine, it would fail for other reasons
    if any(fault.severity == "error" for fault in case.faults):
        with pytest.raises(ConfigurationError):
            load(case.file, check_host=False)
    else:
        load(case.file, check_host=False)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_mended_is_gone_and_no_error_appears(name: str, tmp_path: Path) -> None:
    case = corpus.read(name)
    try:
        changes = fixing.find_changes(case.file, check_host=False)
    except ConfigurationError:
        return  # not even text
    if not changes:
        return
    for file in case.folder.rglob("*.toml"):
        copy = tmp_path / file.relative_to(case.folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for change in changes:
        (tmp_path / change.path.relative_to(case.folder)).write_bytes(change.after.encode())
    fixed = corpus.Case(tmp_path, case.story, {}, ())
    before, after = (Counter(_kinds(corpus.find(each))) for each in (case, fixed))
    assert before - after
    assert [kind for kind in after - before if kind[0] == "error"] == []


def _kinds(faults: list[corpus.Fault]) -> list[tuple[str, str, str]]:
    return [(fault.severity, fault.code, fault.marks) for fault in faults]
