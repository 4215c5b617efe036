"""The conformance report, a table for each suite: passed, not supported, or skipped, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import conformance_subjects
import unikernel_subjects
import wide_filters

SUITES = {
    "test_conformance.py": "conformance of the drivers",
    "test_conformance_unikernels.py": "conformance of the monitors of unikernels",
}
WIDTH = 19


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of each suite that ran."""
    for suite, title in SUITES.items():
        cells: dict[str, dict[str, str]] = {}
        notes: list[str] = []
        for outcome in ("passed", "failed", "error", "skipped"):
            for report in terminalreporter.stats.get(outcome, ()):
                if f"{suite}::" in report.nodeid and (report.when == "call" or outcome != "passed"):
                    test, driver = _names(report.nodeid)
                    cells.setdefault(test, {})[driver] = _cell(outcome, report, driver, notes)
        if cells:
            terminalreporter.section(title)
            _print(terminalreporter, cells, notes)


def _print(
    terminalreporter: pytest.TerminalReporter, cells: dict[str, dict[str, str]], notes: list[str]
) -> None:
    drivers = list(dict.fromkeys(driver for row in cells.values() for driver in row))
    first = max(map(len, cells))
    terminalreporter.write_line(" " * first + "".join(f"  {driver:{WIDTH}}" for driver in drivers))
    for test, row in cells.items():
        line = "".join(f"  {row.get(driver, '-'):{WIDTH}}" for driver in drivers)
        terminalreporter.write_line(f"{test:{first}}{line}")
    for note in dict.fromkeys(notes):
        terminalreporter.write_line(note)


def _names(nodeid: str) -> tuple[str, str]:
    test, _, parameters = nodeid.rpartition("::")[2].partition("[")
    driver, rest = _split(parameters.rstrip("]"))
    return " ".join([test.removeprefix("test_").replace("_", " "), rest]).strip(), driver


def _split(parameters: str) -> tuple[str, str]:
    """The subject's name, which may have a dash in it, and what else a test is tried with."""
    subjects = {*conformance_subjects.SUBJECTS, *unikernel_subjects.SUBJECTS}
    driver = max((name for name in subjects if f"{parameters}-".startswith(f"{name}-")), key=len)
    return driver, parameters[len(driver) + 1 :]


def _cell(outcome: str, report: pytest.TestReport, driver: str, notes: list[str]) -> str:
    unsupported = [str(value) for key, value in report.user_properties if key == "not supported"]
    if outcome == "passed" and unsupported:
        notes.append(f"  {driver}: not supported: capability {unsupported[0]} is false")
        return "not supported"
    if outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        notes.append(f"  {driver}: skipped: {reason.removeprefix('Skipped: ')}")
    return outcome


@pytest.fixture
def not_supported(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Marks a test in the report: the driver refused what it says that it cannot do."""
    return lambda capability: record_property("not supported", capability)


@pytest.fixture(autouse=True)
def scripts_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for filtered programs here is a script."""
    wide_filters.allow_file_servers(monkeypatch)
    wide_filters.allow_scripts(monkeypatch)
