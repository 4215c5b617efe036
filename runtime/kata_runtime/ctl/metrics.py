"""`kata-ctl metrics`: the running sandboxes and their confinement, for Prometheus.

Text of the exposition format on standard output: for node_exporter's textfile collector, or an exec probe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl.running import RecordedSandbox, read_seal, running_sandboxes

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

GOOD = 0
WHO = ("sandbox", "namespace")


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "metrics",
        help="print metrics of the running sandboxes for Prometheus",
        description="Print, in Prometheus' text format, how each running sandbox is sealed, which calls its "
        "filter has refused or let through and named, and how many threads of each process are filtered.",
        epilog="Exit status: 0, also where no sandbox runs.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the metrics of now."""
    registry = CollectorRegistry()
    registry.register(Sandboxes(running_sandboxes()))
    sys.stdout.write(generate_latest(registry).decode())
    return GOOD


class Sandboxes(Collector):
    """What the brokers have recorded of their sandboxes, and the kernel reports of their threads."""

    def __init__(self, sandboxes: Iterable[RecordedSandbox]) -> None:
        self._sandboxes = list(sandboxes)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        seal = GaugeMetricFamily(
            "kata_shim_seal", "Whether a shim is sealed in this mode.", labels=(*WHO, "mode")
        )
        calls = CounterMetricFamily(
            "kata_shim_seccomp_calls",
            "Calls that a shim's policy does not allow: refused when enforced, let through when logged.",
            labels=(*WHO, "mode", "call"),
        )
        threads = GaugeMetricFamily(
            "kata_threads", "Threads by process and seccomp mode.", labels=(*WHO, "process", "mode")
        )
        for sandbox in self._sandboxes:
            who = (sandbox.id, sandbox.namespace)
            record = read_seal(sandbox.directory)
            mode = str(record["mode"]) if record else "unsealed"
            seal.add_metric((*who, mode), 1)
            for name, count in (record or {}).get("calls", {}).items():
                calls.add_metric((*who, mode, name), count)
            for (process, state), count in _threads(sandbox).items():
                threads.add_metric((*who, process, str(state)), count)
        yield from (seal, calls, threads)


def _threads(sandbox: RecordedSandbox) -> dict[tuple[str, int], int]:
    """Number of threads by process name and seccomp mode."""
    found: dict[tuple[str, int], int] = {}
    for process in sandbox.processes:
        try:
            states = read_threads(process.pid)
        except ProcessLookupError:
            continue
        for thread in states:
            key = (process.name, thread.mode)
            found[key] = found.get(key, 0) + 1
    return found
