"""Sealing the pod: ready -> unprivileged -> broker confined -> announced -> filtered -> handed over.

When the guest runs its first instruction, all of it has happened.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import anyio.lowlevel

from kata_hypervisor.contract import Vmm
from kata_hypervisor.seccomp.confinement import find_breach
from kata_runtime.errors import SandboxError
from kata_runtime.stdio import log_fifo

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker

_log = logging.getLogger(__name__)


class Sealed(NamedTuple):
    """What holds this process, on one line, and whether it is a filter."""

    description: str
    in_force: bool


NOT_YET = Sealed("not sealed yet", False)


async def get_ready() -> None:
    """Load what could not be loaded later; beside the machine's processes, which start meanwhile."""
    from kata_runtime.pod import preload

    await anyio.lowlevel.checkpoint()
    preload.load()


async def _give_up(configuration: Configuration, broker: Broker, *, sealed: bool) -> None:
    """Leave this process without privileges; the broker verifies that, and what the others are."""
    from kata_runtime.pod import giving_up

    try:
        giving_up.hold_files_read_only()
    except OSError as error:
        raise SandboxError(
            "seal", f"the shim cannot hold {error.filename} read-only: {error.strerror}"
        ) from error
    try:
        landlock = giving_up.give_up(broker.user)
    except OSError as error:
        raise SandboxError(
            "seal", f"the shim cannot become user {broker.user} of its pod: {error.strerror}"
        ) from error
    required = sorted(set(configuration.runtime.required_confinement))
    for line in await broker.verify_confinement(landlock=landlock, sealed=sealed, required=required):
        _log.warning("%s", line)


async def _log_to_broker(broker: Broker) -> None:
    """Have the broker pass the log on: who owns a sealed shim has no end of containerd's own."""
    if (handler := log_fifo.handler()) is not None:
        handler.turn_to(await broker.relay_log())


def _check_descriptors(*, machine_inside: bool) -> None:
    """Raise SandboxError unless all that this process has open is of a kind that a sealed shim may hold."""
    from kata_runtime.broker import descriptors

    listed = {**descriptors.OF_SHIM, **(descriptors.OF_SHIM_WITH_MACHINE if machine_inside else {})}
    if (unlisted := descriptors.find_unlisted(os.getpid(), listed)) is not None:
        raise SandboxError("seal", f"the shim holds what it must not, so the pod is not started: {unlisted}")


def broker_features(configuration: Configuration, broker: Broker) -> set[str]:
    """What the broker of a pod must be able to do after the seal, beside what each does; see its policy."""

    wanted = {
        "images": not configuration.hypervisor.shares_files,
        "kvm": configuration.hypervisor.needs_full_kvm,
    }
    return broker.later | {feature for feature, needed in wanted.items() if needed}


async def seal(configuration: Configuration, machine: Vmm, broker: Broker, inherited: int) -> Sealed:
    """Put this process under the filter for its machine, and the broker under its own; verify by the kernel's
    report that each thread is.

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
    needed = broker_features(configuration, broker)
    brokers = filters.build_broker(needed, mode, broker.pid) if mode != "off" else None
    if mode != "off":
        await _log_to_broker(broker)
    _check_descriptors(machine_inside="vcpu" in features)
    await _give_up(configuration, broker, sealed=mode != "off")
    sealed = Sealed(built.describe(), mode != "off")
    if not sealed.in_force:
        _log.warning("%s", sealed.description)
        return sealed
    if built.vcpu is not None:
        machine.seal_vcpus(built.install_vcpu)
    assert brokers is not None
    if lacking := await broker.confine(brokers.code, needed):
        _log.warning("the pod's processes are not kept from devices: %s", lacking)
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
