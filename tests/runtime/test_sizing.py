"""The size of the machine, from the configuration or from the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import MachineSize
from kata_runtime.errors import UnsupportedError
from kata_runtime.resource.sizing import MIN_MEMORY_MIB, Demand, Size, grown, most_of, size_of

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
    assert (size.vcpus, size.memory_mib, size.origin) == (2, 1000 + 32 + 64, "container limits")


@pytest.mark.parametrize(("quota", "vcpus"), [(10_000, 1), (80_000, 1), (100_000, 2), (250_000, 3)])
def test_the_shipped_overhead_is_of_cpus_too(quota: int, vcpus: int) -> None:
    table = QemuHypervisor(**QemuHypervisor.example())
    assert size_of(limits(quota, 0), table, static=True, host_cpus=8).vcpus == vcpus


def test_the_pods_sums_win_over_the_first_containers_limits() -> None:
    spec = limits(100_000, 256 * MIB)
    spec["annotations"] = {
        "io.kubernetes.cri.sandbox-cpu-quota": "300000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-memory": str(2048 * MIB),
    }
    size = size_of(spec, Table(), static=True, host_cpus=8)
    assert (size.vcpus, size.memory_mib) == (3, 2048 + 128)


def test_a_guest_is_never_smaller_than_it_can_boot_nor_wider_than_the_host() -> None:
    size = size_of(limits(6_400_000, 4 * MIB), Table(), static=True, host_cpus=4)
    assert (size.vcpus, size.memory_mib) == (4, MIN_MEMORY_MIB)


@pytest.mark.parametrize(("most", "vcpus"), [(0, 3), (1, 1), (2, 2), (8, 3)])
def test_a_limit_gives_no_more_vcpus_than_the_configuration_allows(most: int, vcpus: int) -> None:
    size = size_of(limits(300_000, 0), Table(default_maxvcpus=most), static=True, host_cpus=4)
    assert size.vcpus == vcpus
    assert ("at most" in size.origin) == (vcpus < 3)


# -- growth ------------------------------------------------------------------------------------------------

BOOT = Size(2, 512, "configuration")


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ({}, (8, 512 + 3456)),  # the host's, in steps of 128 MiB
        ({"default_maxvcpus": 4, "default_maxmemory": 1024}, (4, 1024)),
        ({"default_maxvcpus": 1, "default_maxmemory": 256}, (2, 512)),
        ({"default_maxvcpus": 200, "default_maxmemory": 700}, (8, 640)),
        ({"enable_virtio_mem": False}, (8, 512)),
    ],
)
def test_how_large_a_machine_may_become(keys: dict[str, Any], most: tuple[int, int]) -> None:
    table = QemuHypervisor(**QemuHypervisor.example(), **keys)
    assert most_of(table, BOOT, host_cpus=8, host_memory_mib=4000) == MachineSize(*most)


@pytest.mark.parametrize(
    ("demands", "size"),
    [
        ([], (1, 512)),
        ([(0, 0)], (1, 512)),
        ([(0.5, 1)], (2, 640)),
        ([(0.5, 0), (0.5, 0)], (2, 512)),
        ([(0.5, 60), (0.6, 60)], (3, 640)),  # one rounding for all of them
        ([(0, 121)], (1, 768)),  # with a 16th for the guest's kernel
        ([(99, 1445)], (4, 2048)),
    ],
)
def test_a_machine_grows_by_the_sum_of_the_limits(
    demands: list[tuple[float, int]], size: tuple[int, int]
) -> None:
    wanted = [Demand(cpus, memory * MIB) for cpus, memory in demands]
    assert grown("x", MachineSize(1, 512), MachineSize(4, 2048), wanted) == MachineSize(*size)


def test_more_memory_than_a_machine_may_have_is_refused_with_what_would_do() -> None:
    with pytest.raises(UnsupportedError, match="come to 1446 MiB, and its machine has room for 1445: "):
        grown("x", MachineSize(1, 512), MachineSize(4, 2048), [Demand(0, 1446 * MIB)])
    with pytest.raises(UnsupportedError, match="come to 1 MiB, and its machine has room for 0: it boots"):
        grown("x", MachineSize(1, 512), MachineSize(4, 512), [Demand(0, 1)])


def test_what_limits_ask_for() -> None:
    resources = {"cpu": {"quota": 150_000}, "memory": {"limit": 5}}
    assert Demand.of(resources) == Demand(1.5, 5)
    assert Demand.of({"cpu": {"quota": -1}, "memory": {"limit": -1}}) == Demand.of({}) == Demand(0, 0)
    assert Demand(1, 2).at_least(Demand(2, 1)) == Demand(2, 2)
    assert Demand(1, 2).covers(Demand(1, 1))
    assert not Demand(1, 2).covers(Demand(0, 3))
