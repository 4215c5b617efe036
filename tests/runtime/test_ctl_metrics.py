"""What is reported to Prometheus of the sandboxes on a host."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.broker.supervisor import RECORD
from kata_runtime.ctl.metrics import Sandboxes
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox

WHO = {"sandbox": "pod", "namespace": "k8s.io"}


def samples(directory: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The labels and values by metric, as a scraper reads them."""
    processes = (RecordedProcess("shim", os.getpid()), RecordedProcess("qemu", 2**22 + 1))
    sandbox = RecordedSandbox("pod", "k8s.io", str(directory), "/none", processes)
    registry = CollectorRegistry()
    registry.register(Sandboxes([sandbox]))
    text = generate_latest(registry).decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_a_sealed_sandbox_and_its_refused_calls(tmp_path: Path) -> None:
    calls = {"execve": 2, "openat": 1}
    record = {"mode": "enforce", "policy": "x86_64 [serve]", "calls": calls}
    (tmp_path / RECORD).write_text(json.dumps(record))
    found = samples(tmp_path)
    assert found["kata_shim_seal"] == [({**WHO, "mode": "enforce"}, 1.0)]
    assert found["kata_shim_seccomp_calls_total"] == [
        ({**WHO, "mode": "enforce", "call": "execve"}, 2.0),
        ({**WHO, "mode": "enforce", "call": "openat"}, 1.0),
    ]


def test_threads_are_counted_by_the_kernels_word_and_the_dead_are_not(tmp_path: Path) -> None:
    found = samples(tmp_path)
    assert found["kata_shim_seal"] == [({**WHO, "mode": "unsealed"}, 1.0)]
    assert "kata_shim_seccomp_calls_total" not in found
    threads = read_threads(os.getpid())
    (row,) = found["kata_threads"]
    assert row == ({**WHO, "process": "shim", "mode": str(threads[0].mode)}, float(len(threads)))
