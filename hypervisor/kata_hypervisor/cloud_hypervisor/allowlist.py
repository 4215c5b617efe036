"""Our filter for Cloud Hypervisor, below its own, and on its first thread, which has none: its policy."""

from __future__ import annotations

from pathlib import Path

from kata_hypervisor.seccomp import actions, compiled
from kata_hypervisor.seccomp.c_library import MUSL, libc_of
from kata_hypervisor.seccomp.child_filter import ChildFilter

POLICY = "cloud-hypervisor"
LOADING = "load"


def features(libc: str) -> frozenset[str]:
    """The features of the policy from the moment on when the guest runs."""
    return frozenset({MUSL} if libc == MUSL else ())


def build(program: Path) -> ChildFilter:
    """The filter for a Cloud Hypervisor.

    Raises:
        PolicyError, SealError: there is no policy for this machine, or libseccomp is missing.
        HostUnfitError: it cannot be determined which C library it has.
    """
    running = features(libc_of(str(program)))
    return ChildFilter(
        policy=compiled.source_of(POLICY) + "".join(f" [{one}]" for one in sorted(running)),
        advice=f"kata-ctl seccomp show --driver {POLICY} prints the policy",
        code=compiled.program_of(POLICY, running, actions.NOTIFY).code,
        loading=compiled.program_of(POLICY, {*running, LOADING}, actions.NOTIFY).code,
        until_told=True,
        any_path=True,
    )
