"""The filter for a solo5-hvt that has none of its own: its policy, for its C library and its devices."""

from __future__ import annotations

from collections.abc import Sequence

from kata_hypervisor.kvm.abi import KVM_SET_REGS
from kata_hypervisor.seccomp import actions, compiled, syscalls
from kata_hypervisor.seccomp.c_library import libc_of
from kata_hypervisor.seccomp.child_filter import ChildFilter

POLICY = "solo5-hvt"

ADVICE = (
    "kata-ctl seccomp show --driver solo5-hvt-{libc} prints the policy; solo5-hvt 0.11 and newer filter "
    "themselves"
)
CACHES = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld-musl-x86_64.path")
KVM = "/dev/kvm"


def running_features(libc: str, *, block: bool) -> frozenset[str]:
    """The features of the policy for as long as the tender lives."""
    return frozenset({libc, "block"} if block else {libc})


def loading_features(libc: str, *, block: bool) -> frozenset[str]:
    """The features until the guest can run."""
    return running_features(libc, block=block) | {"load", f"load-{libc}"}


def build(tender: str, file: str, blocks: Sequence[str]) -> ChildFilter:
    """The filter for a tender. file, blocks: the paths that it is given, of unikernel and devices.

    Raises:
        PolicyError, SealError: there is no policy for this machine, or libseccomp is missing.
        HostUnfitError: it cannot be determined which C library the tender has.
    """
    libc = libc_of(tender)
    running = running_features(libc, block=bool(blocks))
    loading = loading_features(libc, block=bool(blocks))
    ioctl = syscalls.numbers(syscalls.native())["ioctl"]
    return ChildFilter(
        policy=f"{compiled.source_of(POLICY)} [{' '.join(sorted(running))}]",
        advice=ADVICE.format(libc=libc),
        code=compiled.program_of(POLICY, running, actions.NOTIFY).code,
        loading=compiled.program_of(POLICY, loading, actions.NOTIFY).code,
        last=(ioctl, KVM_SET_REGS),
        readable=(file, *CACHES),
        writable=(KVM, *blocks),
    )
