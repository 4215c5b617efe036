"""The mistakes that `make mutate` makes, and what it does with a module whose tests miss one."""

from __future__ import annotations

import importlib.util
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mutants import mutants

ROOT = Path(__file__).parents[2]
MODULES = tomllib.loads((ROOT / "tests/mutate/modules.toml").read_text(encoding="utf-8"))

SOURCE = '''
"""A docstring."""
from os import path
LIMIT = 3

def f(a: int = 1) -> str:
    """Another."""
    if not a and path:
        return "x"
    a += 1
    if path(a) < LIMIT:
        raise ValueError(f"too few: {a + 1}")
'''


def test_each_place_has_its_mistakes_and_what_is_said_to_people_has_none() -> None:
    found = list(mutants(SOURCE))
    assert [(one.line, one.where, one.before, one.after) for one in found] == [
        (4, "module", "3", "4"),
        (6, "f", "1", "2"),
        (8, "f", "not a and path", "not a or path"),
        (8, "f", "not a", "a"),
        (9, "f", "return 'x'", "return"),
        (10, "f", "a += 1", "pass"),
        (10, "f", "1", "2"),
        (11, "f", "path(a) < LIMIT", "path(a) <= LIMIT"),
        (12, "f", "raise ValueError(f'too few: {a + 1}')", "pass"),
    ]
    assert len({one.source for one in found}) == len(found)
    for one in found:
        compile(one.source, "mutant", "exec")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_tried_is_there_with_its_tests(name: str) -> None:
    paths = [MODULES[name]["path"], *MODULES[name]["tests"]]
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    source = (ROOT / MODULES[name]["path"]).read_text(encoding="utf-8")
    known = {one.name for one in mutants(source)}
    assert [text for text in MODULES[name].get("reasons", {}) if text not in known] == []


@pytest.fixture
def harness() -> Any:
    """tests/mutate/run.py, as a module."""
    spec = importlib.util.spec_from_file_location("mutate_run", ROOT / "tests/mutate/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_who_survives_without_a_reason_is_told_and_a_reason_without_its_mutant(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "runtime/kata_runtime/container/states.py"
    source = path.read_text(encoding="utf-8")
    every = list(mutants(source))
    unnoticed = {source, every[0].source, every[1].source}
    monkeypatch.setattr(harness, "passes", lambda _name, _path, text, *_: text in unnoticed)
    named = {"tests": [], "reasons": {every[0].name: "it is so", "f: a -> b": "it was so"}}
    wrong = harness.judge(path, named, random.Random(1), 0)
    assert wrong == [f"line {every[1].line}, {every[1].name}", "a reason without its mutant: f: a -> b"]
    noticed = f"{len(every)} tried, {len(every) - 2} noticed, 1 with a reason, 1 without"
    assert noticed in capsys.readouterr().out
    unnoticed.clear()
    assert harness.judge(path, named, random.Random(1), 0) == ["its tests fail without a mistake"]


def test_the_tests_import_the_mutant(harness: Any, tmp_path: Path) -> None:
    test = tmp_path / "test_example.py"
    test.write_text("import kata_example\n\ndef test():\n    assert kata_example.TWO == 2\n")
    path = tmp_path / "kata_example.py"
    assert harness.passes("kata_example", path, "TWO = 2", [str(test)], None)
    assert not harness.passes("kata_example", path, "TWO = 3", [str(test)], None)
    assert not harness.passes("kata_example", path, "TWO = 2\nwhile True: pass", [str(test)], 0.0)
    with pytest.raises(SystemExit, match="do not import it"):
        harness.passes("kata_other", path, "", [str(test)], None)
