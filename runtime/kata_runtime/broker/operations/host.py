"""Operations on the host, of which nothing belongs to the sandbox."""

from __future__ import annotations

from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(ALWAYS)
def probe_kvm(context: Context) -> Reply:
    """Answer what a `kata_hypervisor.kvm.probe.KvmProbeResult` says of this host's KVM."""
    found = context.kvm.probe()
    return Reply(
        usable=found.usable,
        runs_unmodified_guests=found.runs_unmodified_guests,
        reason=found.reason[:1000],
    )
