"""The models of the tables, and the register that says which table has which model."""

from __future__ import annotations

from collections.abc import Mapping

from kata_configuration.models.agent import KataAgent
from kata_configuration.models.base import Table
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.runtime import Runtime

__all__ = [
    "AGENTS",
    "FAMILIES",
    "HYPERVISORS",
    "TABLES",
    "Hypervisor",
    "KataAgent",
    "QemuHypervisor",
    "Runtime",
    "Table",
]

# The type of a selected hypervisor's table.
Hypervisor = QemuHypervisor

HYPERVISORS: Mapping[str, type[Table]] = {"qemu": QemuHypervisor}
AGENTS: Mapping[str, type[Table]] = {"kata": KataAgent}

# Top-level tables whose keys are names of tables: [hypervisor.NAME], [agent.NAME].
FAMILIES: Mapping[str, Mapping[str, type[Table]]] = {"hypervisor": HYPERVISORS, "agent": AGENTS}

# Every table by its path.
TABLES: Mapping[tuple[str, ...], type[Table]] = {
    **{("hypervisor", name): model for name, model in HYPERVISORS.items()},
    **{("agent", name): model for name, model in AGENTS.items()},
    ("runtime",): Runtime,
}
