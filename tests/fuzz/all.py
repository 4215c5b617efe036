"""Fuzz every target for a while, as many at a time as there are CPUs. Needs atheris; see run.py."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RUN = Path(__file__).with_name("run.py")
CORPUS = Path(__file__).with_name("corpus")
TAIL = 40
"""Lines of a fuzzer that has found something"""
GRACE = 120
"""Seconds to start, to read the corpus, and to end."""


def fuzz(target: str, seconds: int) -> bool:
    """Fuzz one target; say how it went, and return whether it went well."""
    options = [f"-max_total_time={seconds}", "-timeout=10", "-print_final_stats=1"]
    command = [sys.executable, str(RUN), target, *options]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=seconds + GRACE,
            check=False,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = error.stdout or b"", -1
    text = output.decode(errors="replace")
    runs = re.findall(r"number_of_executed_units: *(\d+)", text)
    covered = re.findall(r"cov: (\d+)", text)
    if status == 0 and runs and covered:
        print(f"{target:<16} {runs[-1]:>9} inputs, {covered[-1]:>4} places covered", flush=True)
        return True
    print(f"{target:<16} FAILED, status {status}", *text.splitlines()[-TAIL:], sep="\n", flush=True)
    return False


def main() -> int:
    """Parse the command line, fuzz, and return 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all where none is named")
    arguments = parser.parse_args()
    targets = arguments.targets or sorted(path.name for path in CORPUS.iterdir())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda target: fuzz(target, arguments.seconds), targets)
        return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
