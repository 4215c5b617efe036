"""Machines of every driver in each state that decides what a sealed shim needs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fake_qemu import FakeHost
from kata_agent.transports import SerialTransport
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import registry
from kata_hypervisor.contract import Vmm
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.qemu.driver import Qemu
from tables import make_table


def machine(name: str, table: Any) -> Vmm:
    return registry.create(name, table, FakeHost())


def unikernel(name: str, table: Any) -> Vmm:
    return registry.create_for_unikernel(name, table, FakeHost())


def qemu_without_vsock() -> Vmm:
    driver = machine("qemu", make_table(QemuHypervisor, kernel="/k"))
    assert isinstance(driver, Qemu)
    driver._transport = SerialTransport.__new__(SerialTransport)  # what `prepare` does on such a host
    return driver


def dragonball_with_all() -> Vmm:
    driver = machine("dragonball", make_table(DragonballTable, kernel="/k", reclaim_guest_freed_memory=True))
    assert isinstance(driver, Dragonball)
    driver._networked = True  # what `prepare` does with a tap
    return driver


def dragonball_to_be_saved() -> Vmm:
    driver = dragonball_with_all()
    driver._saving = object()  # type: ignore[attr-defined]  # what `prepare` does with `saved_to`
    return driver


DRAGONBALL = make_table(DragonballTable, kernel="/k")
CASES: list[tuple[str, Callable[[], Vmm]]] = [
    ("qemu", lambda: machine("qemu", make_table(QemuHypervisor, kernel="/k"))),
    ("qemu", qemu_without_vsock),
    ("clh", lambda: machine("clh", make_table(CloudHypervisor, kernel="/k"))),
    ("firecracker", lambda: machine("firecracker", make_table(Firecracker, kernel="/k"))),
    ("dragonball", lambda: machine("dragonball", DRAGONBALL)),
    ("dragonball", dragonball_with_all),
    ("dragonball-template", dragonball_to_be_saved),
    ("dragonball-unikernel", lambda: unikernel("dragonball", DRAGONBALL)),
    ("solo5-hvt", lambda: unikernel("solo5-hvt", make_table(Solo5Hvt))),
    ("solo5-spt", lambda: unikernel("solo5-spt", make_table(Solo5Spt))),
]
