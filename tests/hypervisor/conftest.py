"""The conformance report: what each driver passed, does not support, or was not tried on, as one table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SUITE = "test_conformance.py"
WIDTH = 19


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table when the suite ran."""
    cells: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if SUITE in report.nodeid and (report.when == "call" or outcome != "passed"):
                test, driver = _names(report.nodeid)
                cells.setdefault(test, {})[driver] = _cell(outcome, report, driver, notes)
    if not cells:
        return
    drivers = list(dict.fromkeys(driver for row in cells.values() for driver in row))
    terminalreporter.section("conformance of the drivers")
    first = max(map(len, cells))
    terminalreporter.write_line(" " * first + "".join(f"  {driver:{WIDTH}}" for driver in drivers))
    for test, row in cells.items():
        line = "".join(f"  {row.get(driver, '-'):{WIDTH}}" for driver in drivers)
        terminalreporter.write_line(f"{test:{first}}{line}")
    for note in dict.fromkeys(notes):
        terminalreporter.write_line(note)


def _names(nodeid: str) -> tuple[str, str]:
    test, _, parameters = nodeid.rpartition("::")[2].partition("[")
    driver, *rest = parameters.rstrip("]").split("-", 1)
    return " ".join([test.removeprefix("test_").replace("_", " "), *rest]), driver


def _cell(outcome: str, report: pytest.TestReport, driver: str, notes: list[str]) -> str:
    unsupported = [str(value) for key, value in report.user_properties if key == "not supported"]
    if outcome == "passed" and unsupported:
        notes.append(f"  {driver}: not supported: capability {unsupported[0]} is false, and it refuses")
        return "not supported"
    if outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        notes.append(f"  {driver}: skipped: {reason.removeprefix('Skipped: ')}")
    return outcome


@pytest.fixture
def not_supported(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Marks a test in the report: the driver refused what it says that it cannot do."""
    return lambda capability: record_property("not supported", capability)
