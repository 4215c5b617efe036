"""Benchmarks of the configuration: CPU time beside that of tomli reading the same file, in turn in one run.

    load      loading the shipped file, as the shim does
    lint      `kata-ctl config lint` of the shipped file
    faults    the same of a file with a fault in every fifth line
    many      the same of 200 files, in one call

Each includes the start of the interpreter. Machines are noisy: quote medians and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import record

from kata_configuration.tell.template import SHIPPED

BUDGETS_MS = {"lint": 300.0, "many": 10_000.0}
"""SPECIFICATION.md, "Budgets"."""
FILE = SHIPPED / "configuration-qemu.toml"
MANY = 200

PARSE = "import sys, tomli; tomli.load(open(sys.argv[1], 'rb'))"
LOAD = "import pathlib, sys, kata_configuration as k; k.load(pathlib.Path(sys.argv[1]), check_host=False)"
KEPT = """import pathlib, sys; from kata_configuration import kept
path = pathlib.Path(sys.argv[1])
kept.load(path, source="benchmark", annotations={}, root=path.parent / "kept")
"""
LINT = """import sys; from kata_runtime.ctl.main import main
main(['config', 'lint', '--no-host', *sys.argv[1:]])"""


def cpu(code: str, path: Path) -> float:
    """CPU seconds, user and system, of a fresh interpreter that runs the code."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{path}: the benchmark ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def with_faults(text: str) -> str:
    """Misspell every fifth key of a file."""
    lines = text.replace("\n#", "\n").splitlines()
    return "\n".join(
        "x" + line if number % 5 == 0 and " = " in line else line for number, line in enumerate(lines)
    )


def main(rounds: int) -> None:
    """Measure, and print a line for each benchmark."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(MANY):
            (directory / f"{number}.toml").write_bytes(FILE.read_bytes())
        sound = directory / "sound" / "configuration.toml"
        sound.parent.mkdir()
        sound.write_bytes(FILE.read_bytes())
        faulty = directory / "faulty" / "configuration.toml"
        faulty.parent.mkdir()
        faulty.write_text(with_faults(FILE.read_text()))
        for title, code, path in (
            ("load", LOAD, FILE),
            ("kept", KEPT, sound),
            ("lint", LINT, FILE),
            ("faults", LINT, faulty),
            ("many", LINT, directory),
        ):
            pairs = [(cpu(code, path), cpu(PARSE, FILE)) for _ in range(rounds)]
            milliseconds = [one * 1e3 for one, _ in pairs]
            record(f"configuration, {title}", milliseconds, unit="ms of CPU", budget=BUDGETS_MS.get(title))
            record(f"configuration, {title}, over tomli", [one / other for one, other in pairs])
            ours, bare = (statistics.median(values) * 1e3 for values in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(f"{title + ':':<8} {ours:.0f} ms of CPU, tomli {bare:.0f} ms, ratio {ratio:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args().rounds)
