"""The drivers. Whoever asks something of each driver asks here, and a new one is a line in DRIVERS.

A driver's own modules are imported when it is chosen: importing this costs two milliseconds.
"""

from __future__ import annotations

from kata_hypervisor.cloud_hypervisor.info import CLOUD_HYPERVISOR
from kata_hypervisor.dragonball.info import DRAGONBALL
from kata_hypervisor.errors import NotSupportedError
from kata_hypervisor.firecracker.info import FIRECRACKER
from kata_hypervisor.qemu.info import QEMU
from kata_hypervisor.solo5.info import SOLO5_HVT, SOLO5_SPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from kata_configuration.models import Hypervisor as Table
    from kata_hypervisor.contract import Hypervisor, UnikernelVmm, VmSpec
    from kata_hypervisor.driver_info import DriverInfo
    from kata_hypervisor.host import Host

DRIVERS: tuple[DriverInfo, ...] = (QEMU, CLOUD_HYPERVISOR, FIRECRACKER, DRAGONBALL, SOLO5_HVT, SOLO5_SPT)


def info_of(name: str) -> DriverInfo:
    """The driver of a table, [hypervisor.NAME]. Raises NotSupportedError for an unknown one."""
    for info in DRIVERS:
        if info.name == name:
            return info
    known = ", ".join(sorted(info.name for info in DRIVERS))
    raise NotSupportedError(f'there is no hypervisor driver "{name}"; known: {known}')


def child_roles() -> frozenset[str]:
    """The roles under which a driver's processes may be started."""
    return frozenset(role for info in DRIVERS for role in info.children)


def unikernel_runners() -> Mapping[str, tuple[str, ...]]:
    """The drivers' names by what an image says that shall run its unikernel, such as "hvt"."""
    kinds = dict.fromkeys(kind for info in DRIVERS for kind in info.unikernels)
    return {kind: tuple(info.name for info in DRIVERS if kind in info.unikernels) for kind in kinds}


def require_machine(name: str, table: Table) -> DriverInfo:
    """See that a table is of virtual machines with a kernel; return its driver's declaration.

    name: the driver, as in [hypervisor.<name>]. table: that table of the configuration.

    Raises:
        NotSupportedError: there is no driver of that name, or the table has no kernel.
    """
    info = info_of(name)
    if not info.machine or not table.boots_linux:
        why = ', because its kernel is ""' if info.machine else ""
        raise NotSupportedError(
            f"[hypervisor.{name}] runs unikernels only{why}, and neither the container's annotations "
            "nor urunc.json in its image names one"
        )
    return info


def create(name: str, table: Table, host: Host) -> Hypervisor:
    """Make a virtual machine's driver. Raises NotSupportedError: see `require_machine`."""
    make: Callable[[Table, Host], Hypervisor] = _load(require_machine(name, table).machine)
    return make(table, host)


def create_for_unikernel(name: str, table: Table, host: Host) -> UnikernelVmm:
    """Make a unikernel's monitor. Arguments and errors as with `create`."""
    info = info_of(name)
    if not info.unikernel:
        known = ", ".join(sorted(info.name for info in DRIVERS if info.unikernel))
        raise NotSupportedError(f"[hypervisor.{name}] runs no unikernels; drivers that do: {known}")
    make: Callable[[Table, Host], UnikernelVmm] = _load(info.unikernel)
    return make(table, host)


def describe_template(name: str, spec: VmSpec) -> Mapping[str, str]:
    """Say what a machine's template is a template of; see Hypervisor.describe_template. Errors as there."""
    info = info_of(name)
    if not info.machine:
        raise NotSupportedError(f"the driver {name} has no templates")
    driver: type[Hypervisor] = _load(info.machine)
    return driver.describe_template(spec)


def _load(place: str) -> Any:
    """Import a driver's class; the tests see that each place holds one of the right kind."""
    from importlib import import_module

    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
