"""Diagnostics as SARIF 2.1.0, which code scanning services read.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from kata_configuration.diagnostics import Code, Diagnostic
from kata_configuration.tell.reports import sentence

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def report(found: Iterable[Diagnostic], version: str) -> str:
    """Render all diagnostics as one SARIF log with one run, and the rules that they break. version: ours."""
    diagnostics = list(found)
    broken = {diagnostic.code for diagnostic in diagnostics}
    rules = [code for code in Code if code.number in broken]
    index = {code.number: position for position, code in enumerate(rules)}
    driver = {"name": "kata-ctl config lint", "version": version, "rules": [_rule(code) for code in rules]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, index[diagnostic.code]) for diagnostic in diagnostics],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(code: Code) -> dict[str, Any]:
    meaning = f"{code.meaning[0].upper()}{code.meaning[1:]}."
    effect = {
        "error": "The configuration does not load.",
        "warning": "The configuration loads; --strict makes it fail.",
        "note": "The configuration loads.",
    }[code.severity.value]
    return {
        "id": code.number,
        "name": code.name.title().replace("_", ""),
        "shortDescription": {"text": meaning},
        "fullDescription": {"text": meaning},
        "help": {"text": f"{meaning} {effect} What to do about it is in each result's message."},
        "defaultConfiguration": {"level": code.severity.value},
        "properties": {"tags": ["configuration", *(["security"] if code.security else [])]},
    }


def _result(found: Diagnostic, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": found.code,
        "ruleIndex": index,
        "level": found.severity.value,
        "message": {"text": sentence(found)},
        "locations": [{"physicalLocation": _place(found)}],
    }
    if found.key:
        result["locations"][0]["logicalLocations"] = [{"fullyQualifiedName": found.key}]
    if found.security:
        result["properties"] = {"tags": ["security"]}
    return result


def _place(found: Diagnostic) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(found.path)}}
    if found.line:
        region: dict[str, Any] = {"startLine": found.line, "startColumn": found.column}
        if found.length:
            region["endColumn"] = found.column + found.length
        region["snippet"] = {"text": found.excerpt}
        place["region"] = region
    return place


def _uri(path: str) -> str:
    quoted = quote(path, safe="/", errors="surrogateescape")
    return f"file://{quoted}" if path.startswith("/") else quoted
