"""What fuzzers have found worth keeping, tried again without a fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz_targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_survived(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_at_all_is_survived(name: str) -> None:
    TARGETS[name](b"")


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
def test_a_kept_input_with_something_else_in_it_is_survived(name: str, data: st.DataObject) -> None:
    kept = data.draw(st.sampled_from(sorted((CORPUS / name).iterdir()))).read_bytes()
    at = data.draw(st.integers(0, len(kept)))
    other = data.draw(
        st.binary(max_size=16) | st.sampled_from([b"\xff" * 4, b"\x80" + bytes(7), b"\xff" * 8])
    )
    TARGETS[name](kept[:at] + other + kept[at + len(other) :])


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert sorted(TARGETS) == sorted(path.name for path in CORPUS.iterdir())
