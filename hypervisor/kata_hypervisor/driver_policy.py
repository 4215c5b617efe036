"""The part of the seccomp policy that the sealed process may need for each driver, and that of children.

A running shim has what its driver's `seal_features` says, which is a part of this.

CHILDREN are programs that this runtime filters because they do not do it themselves, and have policies of
their own: solo5-hvt before 0.11, by its C library while its guest can run, and with all that it does before.
"""

from __future__ import annotations

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.registry import DRIVERS
from kata_hypervisor.seccomp.policy import PROCESS, VCPU, Policy, load_policy
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.seal import SHIM_FEATURES

FEATURES: dict[str, frozenset[str]] = {
    info.name + suffix: features for info in DRIVERS for suffix, features in info.seal_features.items()
}
_MACHINE_IN_PROCESS = "vcpu"

CHILDREN: dict[str, tuple[str, frozenset[str]]] = {
    "solo5-hvt-glibc": ("solo5-hvt", frozenset({"glibc", "block"})),
    "solo5-hvt-musl": ("solo5-hvt", frozenset({"musl", "block"})),
    "solo5-hvt-loading": (
        "solo5-hvt",
        frozenset({"glibc", "musl", "block", "load", "load-glibc", "load-musl"}),
    ),
}
"""By name: whose policy, and which features of it."""

NAMES = tuple(sorted((*FEATURES, *CHILDREN)))


def policy_of(driver: str | None, arch: str | None = None) -> Policy:
    """The shipped policy in which a driver or child is. Raises PolicyError."""
    return load_policy(arch, program=CHILDREN[driver][0] if driver in CHILDREN else "")


def features_of(driver: str) -> frozenset[str]:
    """Every feature that a shim with this driver, or this child, may use. Raises PolicyError for others."""
    if driver in CHILDREN:
        return CHILDREN[driver][1]
    if driver not in FEATURES:
        raise PolicyError(f"there is no driver {driver!r}: there are {', '.join(sorted(FEATURES))}")
    return SHIM_FEATURES | FEATURES[driver]


def threads_of(driver: str) -> tuple[str, ...]:
    """The kinds of threads that have a filter of their own: virtual CPUs only where they are in the shim."""
    return (PROCESS, VCPU) if _MACHINE_IN_PROCESS in features_of(driver) else (PROCESS,)


def rules_of(policy: Policy, driver: str | None, thread: str) -> tuple[Rule, ...]:
    """The rules of a kind of thread, for one driver or for all features. Raises PolicyError."""
    return policy.select(features_of(driver) if driver else policy.features, thread)
