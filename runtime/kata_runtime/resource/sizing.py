"""How large the virtual machine is: from the configuration, or from the pod's limits (static sizing)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

MIB = 1 << 20
# Below this a distribution kernel and the guest agent do not boot.
MIN_MEMORY_MIB = 192
LARGEST = (1 << 63) - 1
"""Of a limit, as the specification's own have it: int64."""

_QUOTA = ("io.kubernetes.cri.sandbox-cpu-quota",)
_PERIOD = ("io.kubernetes.cri.sandbox-cpu-period",)
_MEMORY = ("io.kubernetes.cri.sandbox-memory",)


class Defaults(Protocol):
    """The keys of a hypervisor's table that sizing reads."""

    @property
    def default_vcpus(self) -> int: ...
    @property
    def default_maxvcpus(self) -> int: ...
    @property
    def default_memory(self) -> int: ...
    @property
    def overhead_vcpus(self) -> float: ...
    @property
    def overhead_memory(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Size:
    """Number of virtual CPUs, guest memory in MiB, and where they came from (for the log)."""

    vcpus: int
    memory_mib: int
    origin: str


def size_of(spec: dict[str, Any], table: Defaults, *, static: bool, host_cpus: int) -> Size:
    """The size of the virtual machine for a sandbox whose first container has this specification.

    With static sizing a limit replaces the default and gets the overhead on top; what has no limit keeps the
    default. CRI gives the pod's sums as annotations of the sandbox container. There are never more vCPUs than
    default_maxvcpus, which is the host's number where it is 0: a limit is what a pod may use at most.
    """
    vcpus, memory = table.default_vcpus, table.default_memory
    origin = "configuration"
    if static:
        cpu_limit, memory_limit = _limits(spec)
        if cpu_limit:
            vcpus = max(1, math.ceil(cpu_limit + table.overhead_vcpus))
            origin = "container limits"
        if memory_limit:
            memory = table.overhead_memory + math.ceil(memory_limit / MIB)
            memory = max(memory + memory % 2, MIN_MEMORY_MIB)
            origin = "container limits"
    most = min(host_cpus, table.default_maxvcpus or host_cpus)
    if vcpus > most:
        vcpus, origin = most, f"{origin}, at most {most} vCPUs"
    return Size(vcpus, memory, origin)


def _limits(spec: dict[str, Any]) -> tuple[float, int]:
    """CPUs and bytes that the pod may use; zero where there is no limit."""
    annotations = spec.get("annotations") or {}
    resources = (spec.get("linux") or {}).get("resources") or {}
    cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
    quota = _number(annotations, _QUOTA) or _positive(cpu.get("quota"))
    period = _number(annotations, _PERIOD) or _positive(cpu.get("period")) or 100_000
    return quota / period, _number(annotations, _MEMORY) or _positive(memory.get("limit"))


def _number(annotations: dict[str, str], keys: tuple[str, ...]) -> int:
    for key in keys:
        try:
            return min(max(0, int(annotations[key])), LARGEST)
        except (KeyError, ValueError):
            continue
    return 0


def _positive(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
