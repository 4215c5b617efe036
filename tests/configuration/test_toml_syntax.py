"""Parsing with recovery, TOML 1.1, and the places of keys and values."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import assume, given
from hypothesis import strategies as st

from kata_configuration.diagnostics import Code, KeyPath
from kata_configuration.parse.spans import SpanIndex
from kata_configuration.parse.syntax import MAX_FAULTS, parse


def places(text: str) -> list[tuple[str, int, int]]:
    """Return (code, line, column) of each fault."""
    return [
        (
            fault.code.number,
            text.count("\n", 0, fault.offset) + 1,
            fault.offset - text.rfind("\n", 0, fault.offset),
        )
        for fault in parse(text).faults
    ]


@pytest.mark.parametrize(
    ("text", "tree", "expected"),
    [
        ("a = 1\n", {"a": 1}, []),
        ("", {}, []),
        ("a", {}, [("KATA101", 1, 2)]),
        (
            "[x]\nfoo bar\nb = tru\n c = 01\nd = 1\n",
            {"x": {"d": 1}},
            [("KATA101", 2, 5), ("KATA101", 3, 5), ("KATA101", 4, 6)],
        ),
        ("a = [1,\n 2\nb = 3\n", {"b": 3}, [("KATA101", 1, 1)]),
        ("a = [1 2,\n3]\nb = 1\n", {"b": 1}, [("KATA101", 1, 8)]),
        ('\na = """\nfoo\nb = 3\n', {"b": 3}, [("KATA101", 2, 1)]),
        ('c = "x\nd = 4\n', {"d": 4}, [("KATA101", 1, 7)]),
        ("[foo\nz = 1\n[bar]\nq = \nr = 3\n", {"bar": {"r": 3}}, [("KATA101", 1, 5), ("KATA101", 4, 5)]),
        ("a = 1\na = 2\n", {"a": 1}, [("KATA102", 2, 1)]),
        (
            "[t]\nx = 1\n[u]\n  [t]\ny = 1\n[v]\ny = 2\n",
            {"t": {"x": 1}, "u": {}, "v": {"y": 2}},
            [("KATA102", 4, 4)],
        ),
        ("a = {b = 1, b = 2}\n", {}, [("KATA102", 1, 13)]),
        ("[[z]]\n[[z]]\n[z.q]\n[z.q]\n", {"z": [{}, {"q": {}}]}, [("KATA102", 4, 4)]),
        ("a = 1\na.b = 2\n", {"a": 1}, [("KATA101", 2, 8)]),
        ("é = 1\nb = 1\n", {"b": 1}, [("KATA101", 1, 1)]),
        ("b = 1\na" + ".a" * 5000 + " = 2\n", {"b": 1}, [("KATA101", 2, 1)]),
        ("a = " + "[" * 1000 + "\nb = 1\n", {"b": 1}, [("KATA101", 1, 55)]),
        ("a = " + "[" * 1000 + "]" * 1000 + "\nb = 1\n", {"b": 1}, [("KATA101", 1, 55)]),
    ],
)
def test_a_faulty_statement_does_not_hide_the_others(
    text: str, tree: dict[str, Any], expected: list[tuple[str, int, int]]
) -> None:
    assert parse(text).tree == tree
    assert places(text) == expected


def test_a_duplicate_names_both_lines() -> None:
    (fault,) = parse("[a]\nb = 1\n\nb = 2\n").faults
    assert (fault.key, fault.message) == ("a.b", "is defined twice, first on line 2")


def test_there_is_an_end_to_faults() -> None:
    assert places("?\n" * 5000) == [("KATA101", line, 1) for line in range(1, MAX_FAULTS + 1)]


def test_faults_stand_where_they_are_when_there_are_too_many() -> None:
    parsed = parse("[a]\n" + "?\n" * 50)
    assert parsed.tree == {}
    assert parsed.text.count("\n") == 51


@given(st.text(alphabet=st.sampled_from("ab=.[]{}\"'\\#, \n1:\t\0é-"), max_size=60))
def test_any_text_parses_and_agrees_with_tomli(text: str) -> None:
    parsed = parse(text)
    assert len(parsed.text) == len(text)
    try:
        tree = tomli.loads(text)
    except tomli.TOMLDecodeError:
        assert any(fault.code is not Code.TOML_1_1 for fault in parsed.faults)
    else:
        assert parsed.tree == tree
        assert all(fault.code is Code.TOML_1_1 for fault in parsed.faults)


@pytest.mark.parametrize(
    ("text", "column", "line"),
    [
        ("a = {x = 1,\n y = 2}\n", 12, 1),
        ("a = {x = 1, }\n", 11, 1),
        ("a = [{x = 1}, {x = 2, # why\n }]\n", 21, 1),
        ("a = 07:32\n", 5, 1),
        ("a = 1979-05-27T07:32-07:00\n", 16, 1),
        ('a = "\\\\ \\e"\n', 9, 1),
        ('a = """\n\\x41"""\n', 1, 2),
    ],
)
def test_toml_1_1_is_refused_where_it_stands(text: str, column: int, line: int) -> None:
    assert ("KATA103", line, column) in places(text)
    assert {code for code, _, _ in places(text)} == {"KATA103"}


TOML_SCALARS = (
    *("1", "07:32", "07:32:00", "07:32:00.5", '"07:32"', "1979-05-27T07:32", "1979-05-27 07:32:00-07:00"),
    *('"\\e"', '"\\\\e"', "'\\e'", '"\\x41"', '"""a\n\\e"""', '""""x"\\x41"""', "'''{\n,}'''", '"{,}#"'),
)


def toml_values() -> st.SearchStrategy[str]:
    """Texts of values, of TOML 1.0 and 1.1, and some of neither."""
    scalars = st.sampled_from(TOML_SCALARS)
    gap = st.sampled_from(["", " ", "\n", " # {,} 07:32 \\e\n", "\t"])
    comma = st.sampled_from(["", ","])

    def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        array = st.tuples(gap, inner, gap, comma, gap).map(lambda p: f"[{p[0]}{p[1]}{p[2]}{p[3]}{p[4]}]")
        table = st.tuples(gap, inner, gap, comma, gap).map(
            lambda p: f"{{{p[0]}k = {p[1]}{p[2]}{p[3]}{p[4]}}}"
        )
        return array | table

    return st.recursive(scalars, containers, max_leaves=4)


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="tomllib reads TOML 1.1 from Python 3.15 on")
@given(st.lists(toml_values(), min_size=1, max_size=3))
def test_toml_1_1_is_what_tomllib_refuses(values: list[str]) -> None:
    text = "".join(f"k{number} = {value}\n" for number, value in enumerate(values))
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        assume(False)
    try:
        tomllib.loads(text)
        plain = True
    except tomllib.TOMLDecodeError:
        plain = False
    assert (parse(text).faults == ()) == plain


def leaves(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every path of a tree with what stands there."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key), value
        yield from leaves(value, (*path, key))


def value_at(text: str, offset: int) -> Any:
    """Parse the value that begins at an offset: the shortest text that is one, and not only its start."""
    best: Any = None
    for end in range(offset + 1, len(text) + 1):
        try:
            best = tomli.loads("x = " + text[offset:end])["x"]
        except tomli.TOMLDecodeError:
            if best is not None:
                break
    return best


keys = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
scalars = (
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
trees = st.dictionaries(
    keys,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(trees)
def test_every_key_and_value_has_its_place(tree: dict[str, Any]) -> None:
    text = tomli_w.dumps(tree)
    index = SpanIndex(text)
    for path, value in leaves(tree):
        span = index.find(path)
        assert span is not None, path
        if isinstance(path[-1], str):
            key, _, _ = text[span.key :].partition("\n")
            assert key.startswith((path[-1], '"', "'"))
        if not isinstance(value, dict | list):
            assert value_at(text, span.value) == value


@pytest.mark.parametrize(
    ("text", "path", "column"),
    [
        ('"é ü".b = {c = [1, {d = 2}]}', ("é ü", "b"), 7),
        ('"é ü".b = {c = [1, {d = 2}]}', ("é ü", "b", "c"), 12),
        ('"é ü".b = {c = [1, {d = 2}]}', ("é ü", "b", "c", 0), 17),
        ('"é ü".b = {c = [1, {d = 2}]}', ("é ü", "b", "c", 1, "d"), 21),
        ("a.b.c = 1", ("a",), 1),
        ("a.b.c = 1", ("a", "b", "c"), 5),
        ("[ a . 'b' ]", ("a", "b"), 7),
        ("1 = 2", ("1",), 1),
    ],
)
def test_columns_are_characters(text: str, path: KeyPath, column: int) -> None:
    span = SpanIndex(text).find(path)
    assert span is not None
    assert span.key + 1 == column


@pytest.mark.parametrize(
    ("text", "column", "line"),
    [("// mine\na = 1\n", 1, 1), ("a = 1 // why\n", 7, 1), ("\n  // mine\n", 3, 2)],
)
def test_two_slashes_begin_no_comment(text: str, column: int, line: int) -> None:
    (fault,) = parse(text).faults
    assert (fault.message, fault.hint) == ('"//" begins no comment', 'a comment begins with "#"')
    before = text[: fault.offset]
    assert (before.count("\n") + 1, fault.offset - before.rfind("\n")) == (line, column)
