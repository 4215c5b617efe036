"""A machine that failed on a KVM that runs no unmodified guests: that is the cause, however it failed.

Such a KVM (see kata_hypervisor.kvm.guest) lets a VMM abort, exit or hang, or run on with a guest that makes
no progress. Which of them happens differs from host to host, so it is not looked at: the KVM is probed. It is
probed after the failure and by the broker, because a sealed shim cannot start a process. It does not refuse
the machine beforehand, because a kernel that was modified for such a KVM does run on it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kata_hypervisor.errors import HostUnfitError, KvmRefusedError, MachineFailedError
from kata_hypervisor.host_checks import way_without_kvm
from kata_runtime.broker.errors import BrokerError
from kata_runtime.errors import SandboxError

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker


async def explain(
    error: BaseException, configuration: Configuration, broker: Broker
) -> HostUnfitError | None:
    """The error to report instead, where the KVM is the cause of one: its first line says so.

    error: of a machine's start, up to the first answer of its agent.
    """
    if not configuration.hypervisor.needs_full_kvm or not _may_be_the_kvms(error):
        return None
    reason = ""
    with contextlib.suppress(BrokerError):
        reason = await broker.missing_kvm_support()
    if not reason:
        return None
    way_out = way_without_kvm(configuration.hypervisor_name)
    return HostUnfitError(
        f"cannot run a guest with KVM: {reason}; {way_out}, and see kata-ctl check for this host\n{error}"
    )


def _may_be_the_kvms(error: BaseException) -> bool:
    """Whether the machine failed, KVM refused it, or the guest's agent did not answer."""
    if isinstance(error, SandboxError):
        return error.stage == "agent"
    return isinstance(error, MachineFailedError | KvmRefusedError)
