"""Compiles the shipped policies, for every process that this runtime filters and for all that it may need.

    python -m kata_hypervisor.compiled_policies

writes the files that `kata_hypervisor.seccomp.compiled` reads; `make filters` runs it after a policy was
changed. A test compares what they do with the policies.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, combinations
from pathlib import Path

from kata_hypervisor import virtiofsd
from kata_hypervisor.cloud_hypervisor import allowlist as of_clh
from kata_hypervisor.driver_policy import FEATURES
from kata_hypervisor.qemu import allowlist as of_qemu
from kata_hypervisor.seccomp import actions, compiled, seal
from kata_hypervisor.seccomp.c_library import GLIBC, MUSL
from kata_hypervisor.seccomp.program import PROCESS, VCPU
from kata_hypervisor.solo5 import allowlist as of_solo5

Kind = tuple[str, int, frozenset[str]]
"""A program: the kind of thread, what comes of a call that is in no rule, and the features."""

ALWAYS = {"dragonball": frozenset({"vcpu", "block", "fs", "vhost-vsock"})}
"""What every shim with a driver needs; of the rest of its features each may lack."""


def of_shim() -> Iterator[Kind]:
    """The runtime's own process, by the drivers' features."""
    seen = set()
    for name, most in FEATURES.items():
        always = most if name.endswith("-unikernel") else ALWAYS.get(name.partition("-")[0], frozenset())
        for some in subsets(most - always):
            features = seal.SHIM_FEATURES | always | some
            if features in seen:
                continue
            seen.add(features)
            yield PROCESS, actions.NOTIFY, features
            if VCPU in features:
                yield from ((VCPU, refused, features) for refused in seal.VCPU_REFUSED.values())


def of_broker() -> Iterator[Kind]:
    """The broker, by the programs that it may start."""
    for features in subsets(compiled.features_of(seal.BROKER)):
        yield from ((PROCESS, refused, features) for refused in seal.BROKER_REFUSED.values())


def of_children() -> Iterator[tuple[str, Kind]]:
    """Children, with the name of the policy."""
    yield virtiofsd.NAME, (PROCESS, virtiofsd.REFUSED, frozenset())
    for libc in (GLIBC, MUSL):
        for wanted in (frozenset[str](), frozenset({of_clh.LOADING})):
            yield of_clh.POLICY, (PROCESS, actions.NOTIFY, of_clh.features(libc) | wanted)
        for block in (False, True):
            for accelerator in ("kvm", "tcg"):
                for grows in (False, True):
                    running = of_qemu.features(accelerator, libc, block=block, grows=grows)
                    yield of_qemu.POLICY, (PROCESS, actions.NOTIFY, running)
                    yield of_qemu.POLICY, (PROCESS, actions.NOTIFY, running | {of_qemu.LOADING})
            for features in (of_solo5.running_features, of_solo5.loading_features):
                yield of_solo5.POLICY, (PROCESS, actions.NOTIFY, features(libc, block=block))


def subsets(features: Collection[str]) -> Iterable[frozenset[str]]:
    """All that some of these features make, none and all of them too."""
    names = sorted(features)
    sizes = (combinations(names, size) for size in range(len(names) + 1))
    return map(frozenset, chain.from_iterable(sizes))


def kinds() -> dict[str, list[Kind]]:
    """The programs of each policy, by its name."""
    found = {"": list(of_shim()), seal.BROKER: list(of_broker())}
    for policy, kind in of_children():
        found.setdefault(policy, []).append(kind)
    return found


def main() -> int:
    """Write the files."""
    for program, wanted in kinds().items():
        path = Path(compiled.POLICIES, compiled.source_of(program) + compiled.SUFFIX)
        path.write_text(compiled.text_of(program, wanted), encoding="ascii")
        print(f"{path.name}: {len(wanted)} programs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
