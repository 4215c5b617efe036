"""The drivers by name; a driver's module is imported when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from kata_hypervisor.contract import Hypervisor, UnikernelVmm, VmSpec
from kata_hypervisor.errors import NotSupportedError
from kata_hypervisor.host import Host

DRIVERS = {
    "clh": "kata_hypervisor.cloud_hypervisor.driver:CloudHypervisorDriver",
    "firecracker": "kata_hypervisor.firecracker.driver:FirecrackerDriver",
    "qemu": "kata_hypervisor.qemu.driver:Qemu",
    "dragonball": "kata_hypervisor.dragonball.driver:Dragonball",
}


UNIKERNEL_VMMS = {
    "dragonball": "kata_hypervisor.dragonball.unikernel:InProcessUnikernel",
    "firecracker": "kata_hypervisor.firecracker.unikernel:FirecrackerUnikernel",
    "qemu": "kata_hypervisor.qemu.unikernel:QemuUnikernel",
    "solo5-hvt": "kata_hypervisor.solo5.tender:Hvt",
    "solo5-spt": "kata_hypervisor.solo5.tender:Spt",
}


def create(name: str, table: object, host: Host) -> Hypervisor:
    """Make a virtual machine's driver.

    name: the driver, as in [hypervisor.<name>]. table: that table of the configuration, as its model.

    Raises:
        NotSupportedError: there is no driver of that name, or the table has no kernel.
    """
    if name in UNIKERNEL_VMMS and (name not in DRIVERS or getattr(table, "kernel", "") is None):
        raise NotSupportedError(
            f"[hypervisor.{name}] runs unikernels only{_why(name)}, and neither the container's annotations "
            "nor urunc.json in its image names one"
        )
    return cast(Hypervisor, _load(DRIVERS, name, "hypervisor driver")(table, host))


def _why(name: str) -> str:
    return ', because its kernel is ""' if name in DRIVERS else ""


def describe_template(name: str, spec: VmSpec) -> Mapping[str, str]:
    """Say what a machine's template is a template of; see Hypervisor.describe_template. Errors as there."""
    return cast("type[Hypervisor]", _load(DRIVERS, name, "hypervisor driver")).describe_template(spec)


def create_for_unikernel(name: str, table: object, host: Host) -> UnikernelVmm:
    """Make a unikernel's monitor. Arguments and errors as with `create`."""
    return cast(UnikernelVmm, _load(UNIKERNEL_VMMS, name, "monitor of unikernels")(table, host))


def _load(drivers: Mapping[str, str], name: str, what: str) -> Callable[[object, Host], object]:
    try:
        module, _, attribute = drivers[name].partition(":")
    except KeyError:
        known = ", ".join(sorted(drivers))
        raise NotSupportedError(f'there is no {what} "{name}"; known: {known}') from None
    return cast("Callable[[object, Host], object]", getattr(importlib.import_module(module), attribute))
