"""Diagnostics as text, JSON, SARIF and GitHub's annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_configuration import Diagnostic, Severity, lint
from kata_configuration.diagnostics import Code, Edit
from kata_configuration.tell import reports, sarif

Write = Callable[..., Path]


def diagnostic(**changes: Any) -> Diagnostic:
    """Return a diagnostic of one line of a file."""
    values: dict[str, Any] = {
        "path": "a.toml",
        "line": 3,
        "column": 5,
        "severity": Severity.ERROR,
        "code": "KATA201",
        "key": "runtime.x",
        "message": "unknown key",
        "hint": "remove it",
        "excerpt": "    x = 1",
        "length": 1,
    }
    return Diagnostic(**(values | changes))


def test_text_has_a_caret_under_what_is_meant() -> None:
    assert reports.text(diagnostic()).splitlines() == [
        "a.toml:3:5: error[KATA201] runtime.x: unknown key (remove it)",
        "    3 |     x = 1",
        "      |     ^",
    ]


def test_the_caret_stands_below_wide_characters_and_tabs() -> None:
    found = diagnostic(excerpt='\tk = "日本" x', column=7, length=2)
    _, line, caret = reports.text(found).splitlines()
    assert line == '    3 |  k = "日本" x'
    assert caret == "      |       ^^^^"


def test_of_a_long_line_the_fault_is_shown() -> None:
    found = diagnostic(excerpt="a" * 500 + "b" + "c" * 500, column=501)
    _, line, caret = reports.text(found).splitlines()
    assert len(line) < 120
    assert line[caret.index("^")] == "b"


def test_a_fault_of_the_whole_file_has_no_excerpt() -> None:
    assert reports.text(diagnostic(line=0, column=0, excerpt="", length=0)).count("\n") == 0


def test_colour_changes_nothing_but_colour() -> None:
    plain, coloured = reports.text(diagnostic()), reports.text(diagnostic(), colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


hostile = st.text(st.sampled_from('\x1b\n\r%:,\t\u202e\0a "日'), max_size=12)


@given(hostile, hostile, hostile)
def test_what_is_hostile_forges_no_line(path: str, message: str, excerpt: str) -> None:
    found = diagnostic(
        path=path or "x", message=message, excerpt=excerpt.replace("\n", ""), column=1, length=1
    )
    assert len(reports.text(found).split("\n")) in (1, 3)
    assert "\x1b" not in reports.text(found)
    command = reports.github(found)
    assert "\n" not in command
    assert "\r" not in command
    assert len(re.findall(r"(?<!:)::(?!:)|^::", command)) >= 1
    assert json.loads(reports.json_report([found], [path]))["diagnostics"][0]["message"] == message
    result = json.loads(sarif.report([found], "1"))["runs"][0]["results"][0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert re.fullmatch(r"[\w\-.~/%]+", uri.removeprefix("file://"), re.ASCII)
    assert unquote(uri) == (path or "x")


def test_github_annotates_the_place() -> None:
    found = diagnostic(path="a,b.toml", severity=Severity.NOTE, message="50% of\nit", security=True)
    assert reports.github(found) == (
        "::notice file=a%2Cb.toml,line=3,col=5,endLine=3,endColumn=6,title=KATA201 [security]::"
        "runtime.x: 50%25 of%0Ait (remove it)"
    )


def test_json_has_everything() -> None:
    report = json.loads(reports.json_report([diagnostic(edits=(Edit(1, 2, "y"),))], ["a.toml"]))
    assert report["summary"] == {"error": 1, "warning": 0, "note": 0}
    assert report["files"] == ["a.toml"]
    (found,) = report["diagnostics"]
    assert found["severity"] == "error"
    assert found["edits"] == [{"start": 1, "end": 2, "text": "y"}]


# -- SARIF: the rules of the schema and of the specification that concern what we write --------------------


def check_sarif(log: dict[str, Any]) -> list[dict[str, Any]]:
    """Check a log against the essentials of SARIF 2.1.0 and return its results."""
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert set(run) <= {"tool", "results", "columnKind", "invocations", "artifacts"}
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    driver = run["tool"]["driver"]
    assert driver["name"]
    assert isinstance(driver["version"], str)
    rules = driver["rules"]
    identifiers = [rule["id"] for rule in rules]
    assert len(identifiers) == len(set(identifiers))
    for rule in rules:
        assert rule["id"]
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", rule["name"])
        for name in ("shortDescription", "fullDescription", "help"):
            assert rule[name]["text"].strip()
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        tags = rule["properties"]["tags"]
        assert len(tags) == len(set(tags))
    for result in run["results"]:
        assert set(result) <= {"ruleId", "ruleIndex", "level", "message", "locations", "properties"}
        assert identifiers[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"].strip()
        (location,) = result["locations"]
        assert set(location) <= {"physicalLocation", "logicalLocations"}
        check_region(location["physicalLocation"].get("region"))
    return list(run["results"])


def check_region(region: dict[str, Any] | None) -> None:
    """Check a region of one line: columns count from 1, and the end is not before the start."""
    if region is not None:
        assert set(region) <= {"startLine", "startColumn", "endColumn", "snippet"}
        assert region["startLine"] >= 1
        assert 1 <= region["startColumn"] <= region.get("endColumn", region["startColumn"])
        assert isinstance(region["snippet"]["text"], str)


def test_sarif_is_valid(write: Write, valid_text: str) -> None:
    path = write(valid_text + 'seccompsandbox = "off"\ndefault_vcpus = 0\nx = \n')
    results = check_sarif(json.loads(sarif.report(lint(path, check_host=False), "1.2.3")))
    assert [(result["ruleId"], result["level"]) for result in results] == [
        ("KATA502", "warning"),
        ("KATA302", "error"),
        ("KATA101", "error"),
    ]
    assert results[0]["properties"]["tags"] == ["security"]
    assert results[0]["locations"][0]["physicalLocation"]["region"] == {
        "startLine": 4,
        "startColumn": 18,
        "endColumn": 23,
        "snippet": {"text": 'seccompsandbox = "off"'},
    }
    check_sarif(json.loads(sarif.report(lint(Path("/absent.toml")), "1")))


def test_each_code_is_a_rule_and_its_tag_is_there() -> None:
    found = [diagnostic(code=code.number) for code in Code]
    log = json.loads(sarif.report(found, "1"))
    check_sarif(log)
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [code.number for code in Code]
    security = {rule["id"] for rule in rules if "security" in rule["properties"]["tags"]}
    assert security == {code.number for code in Code if code.security}


def test_numbers_of_codes_are_never_shared() -> None:
    assert len({code.number for code in Code}) == len(Code)


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.number)
def test_meanings_begin_small_and_have_no_full_stop(code: Code) -> None:
    assert not code.meaning.endswith(".")
    assert code.meaning[:1].islower() or code.meaning.startswith("Kata")
