"""Driving a hypervisor's driver through the two steps of its start."""

from __future__ import annotations

from kata_hypervisor.contract import Hypervisor, VmSpec


async def start(machine: Hypervisor, spec: VmSpec) -> None:
    """Prepare the machine and let it run, as the runtime does with its seal in between."""
    await machine.prepare(spec)
    await machine.run()
