"""What attaching a pod's network costs: CPU time of the network program, beside that of an empty interpreter.

    attach    a veth with an address of each family, by a tap and its filters
    detach    the same taken away again

In a namespace of its own, which needs root. Machines are noisy: quote the least and the median.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from results import record

from network_bed import PodNetwork

ATTACH_MS = 60.0
"""SPECIFICATION.md, "Budgets"."""


def cpu(work: Callable[[], object]) -> float:
    """CPU milliseconds, user and system, of the processes that the work starts and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def attach(bed: PodNetwork) -> None:
    """Attach, and let go of what was opened."""
    attached = bed.attach(forward=True)
    for fds in (*attached.queues, attached.listeners):
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds: int = parser.parse_args().rounds
    found: dict[str, list[float]] = {"attach": [], "detach": [], "interpreter": []}
    with tempfile.TemporaryDirectory() as directory, closing(PodNetwork(Path(directory))) as bed:
        bed.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        for _ in range(rounds):
            found["attach"].append(cpu(lambda: attach(bed)))
            found["detach"].append(cpu(bed.detach))
            found["interpreter"].append(
                cpu(lambda: subprocess.run([sys.executable, "-IS", "-c", "pass"], check=True))
            )
    record("the network, attaching it", found["attach"], unit="ms of CPU", budget=ATTACH_MS)
    over = [ours / bare for ours, bare in zip(found["attach"], found["interpreter"], strict=True)]
    record("the network, attaching it, over a bare interpreter", over)
    for name, times in found.items():
        print(
            f"{name:<12} {min(times):6.1f} ms of CPU at least, {statistics.median(times):6.1f} in the median"
        )


if __name__ == "__main__":
    main()
