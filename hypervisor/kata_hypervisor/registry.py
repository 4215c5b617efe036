"""The drivers by name; a driver's module is imported when it is chosen."""

from __future__ import annotations

import importlib
from typing import cast

from kata_hypervisor.contract import Hypervisor
from kata_hypervisor.errors import NotSupportedError
from kata_hypervisor.host import Host

DRIVERS = {
    "clh": "kata_hypervisor.cloud_hypervisor.driver:CloudHypervisorDriver",
    "firecracker": "kata_hypervisor.firecracker.driver:FirecrackerDriver",
    "qemu": "kata_hypervisor.qemu.driver:Qemu",
    "dragonball": "kata_hypervisor.dragonball.driver:Dragonball",
}


def create(name: str, table: object, host: Host) -> Hypervisor:
    """Make a virtual machine's driver.

    name: the driver, as in [hypervisor.<name>]. table: that table of the configuration, as its model.

    Raises:
        NotSupportedError: there is no driver of that name.
    """
    try:
        module, _, attribute = DRIVERS[name].partition(":")
    except KeyError:
        known = ", ".join(sorted(DRIVERS))
        raise NotSupportedError(f'there is no hypervisor driver "{name}"; known: {known}') from None
    driver = getattr(importlib.import_module(module), attribute)
    return cast(Hypervisor, driver(table, host))
