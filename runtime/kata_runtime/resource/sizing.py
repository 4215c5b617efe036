"""How large the virtual machine is: from the configuration, from the pod's limits (static sizing), or by the
containers that come (growth)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from kata_hypervisor.contract import MEMORY_STEP_MIB, MachineSize
from kata_runtime.errors import UnsupportedError

MIB = 1 << 20
MOST_VCPUS = 254
"""That every hypervisor takes which lets a machine grow."""
# Below this a distribution kernel and the guest agent do not boot.
MIN_MEMORY_MIB = 192
KERNELS_PART = 16
"""A part of what containers may use is the guest's kernel's, to know each page and to keep some free; this is
enough, as measured with 0.2 to 8 GiB."""

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


class Size(NamedTuple):
    """Number of virtual CPUs, guest memory in MiB, and where they came from (for the log)."""

    vcpus: int
    memory_mib: int
    origin: str


def size_of(spec: dict[str, Any], table: Defaults, *, static: bool, host_cpus: int) -> Size:
    """The size of the virtual machine for a sandbox whose first container has this specification.

    With static sizing a limit replaces the default and gets the overhead on top, so that a container can have
    all of its limit; what has no limit keeps the default. CRI gives the pod's sums as annotations of the
    sandbox container. There are never more vCPUs than default_maxvcpus, which is the host's number where it
    is 0: a limit is what a pod may use at most. The memory is a multiple of 2 MiB,
    a huge page.
    """
    vcpus, memory = table.default_vcpus, table.default_memory
    origin = "configuration"
    if static:
        cpu_limit, memory_limit = _limits(spec)
        if cpu_limit:
            vcpus = max(1, math.ceil(cpu_limit + table.overhead_vcpus))
            origin = "container limits"
        if memory_limit:
            limit = math.ceil(memory_limit / MIB)
            memory = table.overhead_memory + _with_kernels_part(limit)
            memory = max(memory, MIN_MEMORY_MIB)
            origin = "container limits"
    most = min(host_cpus, table.default_maxvcpus or host_cpus)
    if vcpus > most:
        vcpus, origin = most, f"{origin}, at most {most} vCPUs"
    return Size(vcpus, memory + memory % 2, origin)


class GrowthDefaults(Defaults, Protocol):
    """The keys besides that say how far a machine may grow."""

    @property
    def default_maxmemory(self) -> int: ...


def most_of(table: GrowthDefaults, at_boot: Size, *, host_cpus: int, host_memory_mib: int) -> MachineSize:
    """How large a machine may become.

    Its virtual CPUs: default_maxvcpus, or the host's number. Its memory: default_maxmemory, or the host's;
    what it boots with where enable_virtio_mem is false.
    """
    vcpus = min(table.default_maxvcpus or host_cpus, host_cpus, MOST_VCPUS)
    later = 0
    if getattr(table, "enable_virtio_mem", True):
        later = max(0, (table.default_maxmemory or host_memory_mib) - at_boot.memory_mib)
    steps = later // MEMORY_STEP_MIB
    return MachineSize(max(at_boot.vcpus, vcpus), at_boot.memory_mib + steps * MEMORY_STEP_MIB)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a container asks of its machine: CPUs, and bytes of memory; zero where it has no limit."""

    cpus: float
    memory: int

    @classmethod
    def of(cls, resources: dict[str, Any]) -> Demand:
        """Return what limits (linux.resources) ask for."""
        return cls(*_limits({"linux": {"resources": resources}}))

    def at_least(self, other: Demand | None) -> Demand:
        """Return the larger of both, part by part."""
        if other is None:
            return self
        return Demand(max(self.cpus, other.cpus), max(self.memory, other.memory))

    def covers(self, other: Demand) -> bool:
        """Whether the other one asks for nothing more."""
        return self.at_least(other) == self


def grown(action: str, at_boot: MachineSize, most: MachineSize, demands: Iterable[Demand]) -> MachineSize:
    """The size of a machine with these containers, beside what it boots with.

    There are never more vCPUs than it may have: a limit is what a container may use at most.

    Raises:
        UnsupportedError: it may not have so much memory.
    """
    wanted = list(demands)
    vcpus = math.ceil(at_boot.vcpus + sum(demand.cpus for demand in wanted))
    limits = sum(math.ceil(demand.memory / MIB) for demand in wanted)
    steps = math.ceil(_with_kernels_part(limits) / MEMORY_STEP_MIB)
    memory = at_boot.memory_mib + steps * MEMORY_STEP_MIB
    if memory > most.memory_mib:
        fits = (most.memory_mib - at_boot.memory_mib) * KERNELS_PART // (KERNELS_PART + 1)
        raise UnsupportedError(
            f"cannot {action}: the memory limits of its pod come to {limits} MiB, and its machine has room "
            f"for {fits}: it boots with {at_boot.memory_mib} MiB and may have {most.memory_mib}, by "
            "default_maxmemory and enable_virtio_mem in the hypervisor's table, and by what this host has"
        )
    return MachineSize(min(vcpus, most.vcpus), memory)


def _with_kernels_part(mebibytes: int) -> int:
    return mebibytes + math.ceil(mebibytes / KERNELS_PART)


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
