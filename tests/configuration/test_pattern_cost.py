"""Patterns that could take long to match are refused, and those that people write are not."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kata_configuration.layer.pattern_cost import is_slow

QUICK = [
    "default_memory", "^default_memory$", ".*", "default_.*", "(default|enable)_.*", "enable_(iommu|debug)",
    "[a-z_]+", "(?:default|enable)_(?:vcpus|memory)", "kernel(_params)?", "(a.*|b.*|c.*|d.*|e.*|f.*)",
    r"agent\.\w+", "a{3}", "(a|b)?", r"[*+?(|)]\*\+\?\(\|\)", "[]*+?()|]+", "a*?b+?",
]  # fmt: skip
SLOW = [
    "(a*)*b", "(a+)+$", "(.*)*x", "(.|.)*x", "(?:a|b)+c", ".*.*.*.*.*x", ".?" * 40 + "x", "(.|.)" * 40 + "x",
    "(a{1,9}){1,9}", "((a?b?)c?d?e?)", "(?P<x>a*)*", r"(\w*)*x", "([a-z]*)*1",
]  # fmt: skip


@pytest.mark.parametrize("pattern", QUICK)
def test_what_people_write_is_quick(pattern: str) -> None:
    re.compile(pattern)
    assert not is_slow(pattern)


@pytest.mark.parametrize("pattern", SLOW)
def test_what_could_take_long_is_slow(pattern: str) -> None:
    re.compile(pattern)
    assert is_slow(pattern)


@given(st.text(alphabet="a.*+?|()[]{},1\\", max_size=30))
def test_every_pattern_is_judged_and_the_quick_ones_are_matched(pattern: str) -> None:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, FutureWarning):
        assume(False)
    if not is_slow(pattern):
        compiled.fullmatch("a" * 40 + "b")
