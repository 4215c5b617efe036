"""What the sealed process may need for each driver: the most, over everything that a host or a table decides.

A running shim has what its driver's `seal_features` says, which is a part of this. [hypervisor.dragonball] is
there three times: a shim holds a machine with a Linux in it, or a unikernel, and never both; the process that
makes a template, and which no pod has, saves its machine.
"""

from __future__ import annotations

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp.policy import PROCESS, VCPU, Policy
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.seal import SHIM_FEATURES

_MACHINE = frozenset({"vcpu", "block", "fs", "vhost-vsock", "vhost-net", "balloon"})

FEATURES: dict[str, frozenset[str]] = {
    "qemu": frozenset({"serial"}),
    "clh": frozenset(),
    "firecracker": frozenset(),
    "dragonball": _MACHINE,
    "dragonball-template": _MACHINE | {"snapshot"},
    "dragonball-unikernel": frozenset({"vcpu", "unikernel"}),
    "solo5-hvt": frozenset(),
    "solo5-spt": frozenset(),
}
_MACHINE_IN_PROCESS = "vcpu"


def features_of(driver: str) -> frozenset[str]:
    """Every feature that a shim with this driver may use. Raises PolicyError for an unknown driver."""
    if driver not in FEATURES:
        raise PolicyError(f"there is no driver {driver!r}: there are {', '.join(sorted(FEATURES))}")
    return SHIM_FEATURES | FEATURES[driver]


def threads_of(driver: str) -> tuple[str, ...]:
    """The kinds of threads that have a filter of their own: virtual CPUs only where they are in the shim."""
    return (PROCESS, VCPU) if _MACHINE_IN_PROCESS in features_of(driver) else (PROCESS,)


def rules_of(policy: Policy, driver: str | None, thread: str) -> tuple[Rule, ...]:
    """The rules of a kind of thread, for one driver or for all features. Raises PolicyError."""
    return policy.select(features_of(driver) if driver else policy.features, thread)
