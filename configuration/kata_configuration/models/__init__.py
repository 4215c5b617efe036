"""The register that says which table has which model. A model is imported when it is asked for.

A key that a driver does not honour yet is in the planned part of its table: known, explained, and refused
unless it says what happens anyway. A key that nobody acts on is in the ineffective part of its family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from kata_configuration.models.agent import KataAgent
from kata_configuration.models.base import HypervisorTable, MachineTable, Table
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.runtime import OTHER_NAMES, Runtime

__all__ = [
    "AGENTS",
    "AVAILABLE",
    "FAMILIES",
    "HYPERVISORS",
    "INEFFECTIVE",
    "OTHER_NAMES",
    "PLANNED",
    "TABLES",
    "HypervisorTable",
    "KataAgent",
    "MachineTable",
    "QemuHypervisor",
    "Runtime",
    "Table",
    "own_path",
]

Key = TypeVar("Key")

if TYPE_CHECKING:
    from kata_configuration.models.cloud_hypervisor import CloudHypervisor
    from kata_configuration.models.dragonball import Dragonball
    from kata_configuration.models.firecracker import Firecracker
    from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt

    # The type of a selected hypervisor's table. What is asked of every one is in HypervisorTable; isinstance
    # with MachineTable tells those with a kernel.
    MachineHypervisor: TypeAlias = QemuHypervisor | CloudHypervisor | Firecracker | Dragonball
    Hypervisor: TypeAlias = MachineHypervisor | Solo5Hvt | Solo5Spt


class Models(Mapping[Key, type[Table]]):
    """Models by key, each given as "module:class" and imported when it is looked up."""

    def __init__(self, places: Mapping[Key, str]) -> None:
        self._places = dict(places)

    def __getitem__(self, key: Key) -> type[Table]:
        module, _, name = self._places[key].partition(":")
        model: type[Table] = getattr(import_module(f"{__name__}.{module}"), name)
        return model

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


_HYPERVISORS = {
    "qemu": "qemu:QemuHypervisor",
    "clh": "cloud_hypervisor:CloudHypervisor",
    "firecracker": "firecracker:Firecracker",
    "dragonball": "dragonball:Dragonball",
    "solo5-hvt": "solo5:Solo5Hvt",
    "solo5-spt": "solo5:Solo5Spt",
}
_AGENTS = {"kata": "agent:KataAgent"}

# The hypervisors that have a driver in this version. Tables of the others are checked all the same.
AVAILABLE = ("qemu", "clh", "firecracker", "dragonball", "solo5-hvt", "solo5-spt")

HYPERVISORS: Models[str] = Models(_HYPERVISORS)
AGENTS: Models[str] = Models(_AGENTS)

# Top-level tables whose keys are names of tables: [hypervisor.NAME], [agent.NAME].
FAMILIES: Mapping[str, Models[str]] = {"hypervisor": HYPERVISORS, "agent": AGENTS}

# Every table by its path.
TABLES: Models[tuple[str, ...]] = Models(
    {
        **{("hypervisor", name): place for name, place in _HYPERVISORS.items()},
        **{("agent", name): place for name, place in _AGENTS.items()},
        ("runtime",): "runtime:Runtime",
    }
)

# By the table's path: keys that are known and not honoured yet.
PLANNED: Models[tuple[str, ...]] = Models(
    {
        ("hypervisor", "qemu"): "qemu_planned:QemuPlanned",
        ("hypervisor", "clh"): "cloud_hypervisor_planned:CloudHypervisorPlanned",
        ("hypervisor", "firecracker"): "firecracker_planned:FirecrackerPlanned",
        ("hypervisor", "dragonball"): "dragonball_planned:DragonballPlanned",
        ("agent", "kata"): "agent_planned:AgentPlanned",
        ("runtime",): "runtime_planned:RuntimePlanned",
    }
)

# By the family: keys that are known, and that nobody acts on.
INEFFECTIVE: Models[str] = Models(
    {
        "hypervisor": "ineffective:HypervisorIneffective",
        "agent": "ineffective:AgentIneffective",
        "runtime": "ineffective:RuntimeIneffective",
    }
)


def own_path(path: Sequence[str | int]) -> tuple[str, ...]:
    """Return a table's path with the hypervisor's own name, where the file has another one."""
    names = tuple(str(part) for part in path)
    if len(names) > 1 and names[0] == "hypervisor":
        return (names[0], OTHER_NAMES.get(names[1], names[1]), *names[2:])
    return names
