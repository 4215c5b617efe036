"""The size of the machine, from the configuration or from the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kata_runtime.resource.sizing import MIN_MEMORY_MIB, size_of

MIB = 1 << 20


@dataclass
class Table:
    default_vcpus: int = 2
    default_maxvcpus: int = 0
    default_memory: int = 512
    overhead_vcpus: float = 0.0
    overhead_memory: int = 0


def limits(quota: int, memory: int) -> dict[str, Any]:
    return {"linux": {"resources": {"cpu": {"quota": quota, "period": 100_000}, "memory": {"limit": memory}}}}


def test_without_static_sizing_limits_do_not_matter() -> None:
    size = size_of(limits(400_000, 4096 * MIB), Table(), static=False, host_cpus=8)
    assert (size.vcpus, size.memory_mib, size.origin) == (2, 512, "configuration")


@pytest.mark.parametrize("spec", [{}, {"linux": None}, limits(0, 0), limits(-1, -1)])
def test_no_limit_keeps_the_default(spec: dict[str, Any]) -> None:
    size = size_of(spec, Table(), static=True, host_cpus=8)
    assert (size.vcpus, size.memory_mib, size.origin) == (2, 512, "configuration")


def test_limits_replace_the_default_and_get_the_overhead() -> None:
    table = Table(overhead_vcpus=0.2, overhead_memory=32)
    size = size_of(limits(150_000, 1000 * MIB), table, static=True, host_cpus=8)
    assert (size.vcpus, size.memory_mib, size.origin) == (2, 1032, "container limits")


def test_the_pods_sums_win_over_the_first_containers_limits() -> None:
    spec = limits(100_000, 256 * MIB)
    spec["annotations"] = {
        "io.kubernetes.cri.sandbox-cpu-quota": "300000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-memory": str(2048 * MIB),
    }
    size = size_of(spec, Table(), static=True, host_cpus=8)
    assert (size.vcpus, size.memory_mib) == (3, 2048)


def test_a_guest_is_never_smaller_than_it_can_boot_nor_wider_than_the_host() -> None:
    size = size_of(limits(6_400_000, 4 * MIB), Table(), static=True, host_cpus=4)
    assert (size.vcpus, size.memory_mib) == (4, MIN_MEMORY_MIB)


@pytest.mark.parametrize(("most", "vcpus"), [(0, 3), (1, 1), (2, 2), (8, 3)])
def test_a_limit_gives_no_more_vcpus_than_the_configuration_allows(most: int, vcpus: int) -> None:
    size = size_of(limits(300_000, 0), Table(default_maxvcpus=most), static=True, host_cpus=4)
    assert size.vcpus == vcpus
    assert ("at most" in size.origin) == (vcpus < 3)
