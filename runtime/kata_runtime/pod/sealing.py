"""Sealing the runtime's own process: ready -> unprivileged -> announced -> filtered -> handed over.

When the guest runs its first instruction, all of it has happened.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.lowlevel

from kata_hypervisor.contract import Vmm
from kata_hypervisor.seccomp.confinement import find_breach
from kata_runtime.errors import SandboxError

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What holds this process, on one line, and whether it is a filter."""

    description: str
    in_force: bool


NOT_YET = Sealed("not sealed yet", False)


async def get_ready() -> None:
    """Load what could not be loaded later; beside the machine's processes, which start meanwhile."""
    from kata_runtime.pod import preload

    await anyio.lowlevel.checkpoint()
    preload.load()


async def _give_up(broker: Broker) -> None:
    """Leave this process without privileges; the broker verifies it."""
    from kata_runtime.pod import giving_up

    try:
        lacking = giving_up.give_up(broker.user)
    except OSError as error:
        raise SandboxError(
            "seal", f"the shim cannot become user {broker.user} of its pod: {error.strerror}"
        ) from error
    if lacking:
        _log.warning("%s", lacking)
    await broker.verify_shim()


async def seal(configuration: Configuration, machine: Vmm, broker: Broker, inherited: int) -> Sealed:
    """Put this process under the filter for its machine; verify by the kernel's report that each thread is.

    machine: prepared, and not running. broker: gets the filter's listener. inherited: how many filters the
    process has had from its start.

    Raises:
        PolicyError, SealError, BrokerError, SandboxError: it is not sealed as it must be, and must not go on.
    """
    from kata_hypervisor.seccomp import seal as filters
    from kata_runtime.pod import preload

    mode = configuration.runtime.shim_seccomp
    features = machine.seal_features
    if "vcpu" in features and not configuration.hypervisor.confined:
        mode = "off"  # the machine's process, which is to have no filter, is this one
    built = filters.build(filters.SHIM_FEATURES | features, mode)
    await _give_up(broker)
    sealed = Sealed(built.describe(), mode != "off")
    if not sealed.in_force:
        _log.warning("%s", sealed.description)
        return sealed
    if built.vcpu is not None:
        machine.seal_vcpus(built.install_vcpu)
    await broker.announce_seal(mode=mode, policy=built.name)
    preload.close()
    # From here to the handover nobody answers a call that the filter refuses.
    listener = built.install()
    assert listener is not None
    try:
        threads = await broker.supervise(listener)
    finally:
        os.close(listener)
    if (breach := find_breach(threads, True, inherited)) is not None:
        raise SandboxError(
            "seal",
            f"the shim is not confined as shim_seccomp requires, so the pod is not started: {breach}",
        )
    return sealed
