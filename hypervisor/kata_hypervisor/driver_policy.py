"""The part of the seccomp policy that the sealed process may need for each driver, and that of children.

A running shim has what its driver's `seal_features` says, which is a part of this.

CHILDREN are other processes that this runtime filters, because they do not do it themselves, do it too widely
or not on all of their threads, and have policies of their own: QEMU by its accelerator, Cloud Hypervisor, and
solo5-hvt before 0.11 by its C library, while the guest can run, and with all that they do before; virtiofsd;
the broker, as every pod has it, and with the programs that it starts for some.
"""

from __future__ import annotations

from typing import NamedTuple

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.registry import DRIVERS
from kata_hypervisor.seccomp.policy import PROCESS, VCPU, Policy, load_policy
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.seal import BROKER, SHIM_FEATURES

FEATURES: dict[str, frozenset[str]] = {
    info.name + suffix: features for info in DRIVERS for suffix, features in info.seal_features.items()
}
_MACHINE_IN_PROCESS = "vcpu"


class ChildPolicy(NamedTuple):
    """A child that is filtered: whose policy, and which features of it.

    title: what scores name it; empty where they do not, for virtiofsd and for all that a VMM loads with.
    """

    program: str
    features: frozenset[str]
    title: str = ""


_OLD_HVT = "this runtime's filter for solo5-hvt before 0.11, {}"

CHILDREN = {
    "qemu-kvm": ChildPolicy(
        "qemu", frozenset({"kvm", "block", "grows"}), "this runtime's filter for QEMU, KVM"
    ),
    "qemu-tcg": ChildPolicy(
        "qemu", frozenset({"tcg", "block", "grows"}), "this runtime's filter for QEMU, TCG"
    ),
    "qemu-loading": ChildPolicy("qemu", frozenset({"kvm", "tcg", "block", "grows", "musl", "load"})),
    "cloud-hypervisor": ChildPolicy(
        "cloud-hypervisor", frozenset({"musl"}), "this runtime's filter for Cloud Hypervisor"
    ),
    "cloud-hypervisor-loading": ChildPolicy("cloud-hypervisor", frozenset({"musl", "load"})),
    "solo5-hvt-glibc": ChildPolicy("solo5-hvt", frozenset({"glibc", "block"}), _OLD_HVT.format("glibc")),
    "solo5-hvt-musl": ChildPolicy("solo5-hvt", frozenset({"musl", "block"}), _OLD_HVT.format("musl")),
    "solo5-hvt-loading": ChildPolicy(
        "solo5-hvt", frozenset({"glibc", "musl", "block", "load", "load-glibc", "load-musl"})
    ),
    "broker": ChildPolicy(BROKER, frozenset(), "this runtime's broker"),
    "broker-with-programs": ChildPolicy(
        BROKER, frozenset({"images", "network", "kvm"}), "this runtime's broker, with network, images, KVM"
    ),
    "virtiofsd": ChildPolicy("virtiofsd", frozenset()),
}
"""By name."""

NAMES = tuple(sorted((*FEATURES, *CHILDREN)))


def policy_of(driver: str | None, arch: str | None = None) -> Policy:
    """The shipped policy in which a driver or child is. Raises PolicyError."""
    return load_policy(arch, program=CHILDREN[driver].program if driver in CHILDREN else "")


def features_of(driver: str) -> frozenset[str]:
    """Every feature that a shim with this driver, or this child, may use. Raises PolicyError for others."""
    if driver in CHILDREN:
        return CHILDREN[driver].features
    if driver not in FEATURES:
        raise PolicyError(f"there is no driver {driver!r}: there are {', '.join(sorted(FEATURES))}")
    return SHIM_FEATURES | FEATURES[driver]


def threads_of(driver: str) -> tuple[str, ...]:
    """The kinds of threads that have a filter of their own: virtual CPUs only where they are in the shim."""
    return (PROCESS, VCPU) if _MACHINE_IN_PROCESS in features_of(driver) else (PROCESS,)


def rules_of(policy: Policy, driver: str | None, thread: str) -> tuple[Rule, ...]:
    """The rules of a kind of thread, for one driver or for all features. Raises PolicyError."""
    return policy.select(features_of(driver) if driver else policy.features, thread)
