"""What this host's KVM is good for, found out for a shim whose machine has failed.

Here, and after the failure: a sealed shim cannot start a process, and a pod that starts pays nothing. Once
for each sandbox, so that a shim that a guest owns starts no more processes by asking again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_hypervisor.kvm.probe import KvmProbeResult


class Kvm:
    """The host's KVM, as one sandbox may ask for it."""

    def __init__(self) -> None:
        self._result: KvmProbeResult | None = None

    def probe(self) -> KvmProbeResult:
        """Run a small guest, in a process of its own that is killed at the probe's deadline.

        The broker does nothing else meanwhile: 50 ms, unless the KVM hangs, and its pod has failed.
        """
        if self._result is None:
            from kata_hypervisor.kvm.probe import probe_kvm

            self._result = probe_kvm()
        return self._result
