"""Runs pytest; what fails, when it is little, is run once more alone, and is named when it passes then.

usage: second_try.py PYTEST-ARGUMENT...

A test that fails twice fails. One that passes the second time is a fault as well, of the test or of the
project, and is printed as unsteady: find it. It does not fail the run, for half an hour's work of a thousand
tests in emulated machines would be lost with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CACHE = Path(".pytest_cache/v/cache/lastfailed")
MOST = 3
"""Failed tests that may be tried again: more of them have a cause that is not chance."""
TESTS_FAILED = 1  # pytest.ExitCode


def failed_tests(cache: Path = CACHE) -> list[str]:
    """The names of the tests that failed, by pytest's own record."""
    try:
        return sorted(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return []


def run(arguments: list[str]) -> int:
    """Run pytest, at most twice; return its exit status."""
    CACHE.unlink(missing_ok=True)
    pytest = [str(Path(sys.executable).with_name("pytest"))]
    status = subprocess.call([*pytest, *arguments])
    failed = failed_tests()
    if status != TESTS_FAILED or not 1 <= len(failed) <= MOST:
        return status
    print(f"\nonce more, alone: {', '.join(failed)}", flush=True)
    status = subprocess.call([*pytest, *failed])
    if status == 0:
        print(f"\nUNSTEADY: failed once and passed alone: {', '.join(failed)}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
