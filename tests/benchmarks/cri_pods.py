"""Benchmark: what a kubelet asks of the CRI, of pods in virtual machines beside pods of runc's, by crictl.

In turn, in one run, on one containerd:

    ready        seconds from asking for a pod until its container's readiness probe would succeed
    at once      the same until five pods that were asked for together are all ready
    exec         ten times ExecSync, beside ten times `ctr task exec`
    stats        seconds and CPU of a call for the numbers of all the pods, twenty by default
    memory       proportional set size of a pod's processes, in MiB, with and without the guest's memory

Needs root, crictl (KATA_TEST_CRICTL) and CNI's plugins. A ratio is of one round, ours over runc's: what is
quoted of rounds is the median, and in brackets the least and the most.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/quickstart"))

from results import record
from sandbox import pss_mib
from zygote import metered, quoted, spent

import containerd_versions
import cri_node
import cri_settings
from cri_node import Cri

GUEST_IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
RUNC = cri_settings.runtime("runc", "io.containerd.runc.v2")
OURS, OTHER = RUNTIMES = ("kata", "runc")
AT_ONCE, EXECS = 5, 10
CALLS_A_SECOND_BUDGET = 1.0
"""Seconds that a call for the numbers of all pods may take: a kubelet wants them once a second at most."""


class Bench:
    """Pods of both runtimes on one containerd."""

    def __init__(self, cri: Cri) -> None:
        self.cri = cri

    def start(self, runtime: str) -> tuple[str, str]:
        """A pod whose container answers; the ids of both."""
        name = f"{runtime}-{secrets.token_hex(4)}"
        file = self.cri.pod_file(name, labels={"runtime": runtime})
        pod = self.cri.run("runp", "--runtime", runtime, file)
        script, labels = "touch /ready; exec sleep 3600", {"runtime": runtime}
        container = self.cri.start(pod, file, f"{name}-container", script, labels=labels)
        self.cri.bed.node.until(lambda: self._is_ready(container), f"{name} is ready")
        return pod, container

    def _is_ready(self, container: str) -> bool:
        return not self.cri.call("exec", "--sync", container, "test", "-e", "/ready").returncode

    def end(self, *pods: str) -> None:
        """End pods."""
        for pod in pods:
            self.cri.run("rmp", "-f", pod)

    def ready(self, runtime: str) -> float:
        """How long one takes."""
        begin = time.monotonic()
        pod, _ = self.start(runtime)
        taken = time.monotonic() - begin
        self.end(pod)
        return taken

    def at_once(self, runtime: str) -> float:
        """How long five take that are asked for together."""
        begin = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pods = [pod for pod, _ in pool.map(self.start, [runtime] * AT_ONCE)]
        taken = time.monotonic() - begin
        self.end(*pods)
        return taken

    def processes(self, pod: str) -> set[int]:
        """A pod's shim, by its arguments, and all processes below it."""
        parents, shims = {}, set()
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                pid = int(entry.name)
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if pod.encode() in words:
                    shims.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in shims} - shims:
            shims |= more
        return shims


def elapsed(action: Callable[[], object], times: int = 1) -> float:
    """Seconds that so many take, one after the other."""
    begin = time.monotonic()
    for _ in range(times):
        action()
    return time.monotonic() - begin


def compare(name: str, measure: Callable[[str], float], rounds: int) -> None:
    """Measure both runtimes in turn, print what they take, and record the ratios."""
    found: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(rounds):
        for runtime, values in found.items():
            values.append(measure(runtime))
    ratios = [ours / other for ours, other in zip(found[OURS], found[OTHER], strict=True)]
    record(f"{name}, over runc's", ratios)
    shown = ", ".join(f"{runtime} {quoted(values)} s" for runtime, values in found.items())
    print(f"{name}: {shown}; ratio {quoted(ratios)}", flush=True)


def compare_execs(bench: Bench, rounds: int) -> None:
    """ExecSync, and ctr's exec, of both runtimes in turn."""
    cri = bench.cri
    pods = {runtime: bench.start(runtime) for runtime in RUNTIMES}

    def sync(runtime: str) -> float:
        return elapsed(lambda: cri.run("exec", "--sync", pods[runtime][1], "true"), EXECS)

    def ctr(runtime: str) -> float:
        container = pods[runtime][1]
        return elapsed(
            lambda: cri.bed.node.ctr("task", "exec", "--exec-id", secrets.token_hex(4), container, "true"),
            EXECS,
        )

    compare(f"{EXECS} times ExecSync", sync, rounds)
    compare(f"{EXECS} times ctr's exec", ctr, rounds)
    bench.end(*(pod for pod, _ in pods.values()))


def show_stats(bench: Bench, group: Path, count: int, rounds: int) -> None:
    """A call for the numbers of so many pods: how long it takes, and the CPU of containerd and the shims."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for runtime in RUNTIMES:
        pods = [bench.start(runtime)[0] for _ in range(count)]
        show_memory(bench, runtime, pods[-1])
        taken[runtime] = []
        for _ in range(rounds):
            before = spent(group)
            seconds = elapsed(lambda: bench.cri.run("stats", "--label", f"runtime={runtime}"))  # noqa: B023
            taken[runtime].append((seconds, spent(group) - before))
        bench.end(*pods)
        seconds_of, cpu = ([one[index] for one in taken[runtime]] for index in (0, 1))
        print(f"stats of {count} pods, {runtime}: {quoted(seconds_of)} s, CPU {quoted(cpu, 3)} s", flush=True)
    budget = CALLS_A_SECOND_BUDGET
    record(f"stats of {count} pods", [one[0] for one in taken[OURS]], unit="s", budget=budget)
    other = statistics.median(cpu for _, cpu in taken[OTHER])
    record(f"CPU of stats of {count} pods, over runc's", [one[1] / other for one in taken[OURS]])


def show_memory(bench: Bench, runtime: str, pod: str) -> None:
    """The memory of a pod's processes."""
    pids = bench.processes(pod)
    without = sum(pss_mib(pid) for pid in pids)
    whole = sum(map(whole_pss_mib, pids))
    print(
        f"memory of the last pod, {runtime}: {whole:.1f} MiB, {without:.1f} without the guest's", flush=True
    )
    record(f"memory of a CRI pod, {runtime}", [whole], unit="MiB")


def whole_pss_mib(pid: int) -> float:
    """The proportional set size of a process, its guest's memory included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@contextmanager
def prepared(version: str) -> Iterator[Bench]:
    """A node with both runtimes."""
    with tempfile.TemporaryDirectory() as directory:
        cri = Cri(Path(directory), GUEST_IMAGE, version, further=(RUNC,))
        try:
            yield Bench(cri)
        finally:
            cri.call("rmp", "--all", "--force")
            cri.bed.close()


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pods", type=int, default=20)
    parser.add_argument("--containerd", default=containerd_versions.SECOND)
    arguments = parser.parse_args()
    if not cri_node.PROGRAM:
        print("no crictl: KATA_TEST_CRICTL names its program; nothing of the CRI is measured")
        return
    with metered() as group, prepared(arguments.containerd) as bench:
        (group / "cgroup.procs").write_text(str(bench.cri.bed.node.containerd.pid))
        compare("a pod until it is ready", bench.ready, arguments.rounds)
        compare(f"{AT_ONCE} pods at once until all are ready", bench.at_once, arguments.rounds)
        compare_execs(bench, arguments.rounds)
        show_stats(bench, group, arguments.pods, arguments.rounds)


if __name__ == "__main__":
    main()
