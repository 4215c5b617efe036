"""The boot of a sandbox: stage after stage, and all of them undone when one fails.

An error of the system's or of the guest's names the stage in which it came.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.concurrency import finish, gather
from kata_runtime.container.bundle import JsonObject, annotations_of
from kata_runtime.container.guest import Guest, GuestBoot
from kata_runtime.errors import SandboxError
from kata_runtime.logging import set_level
from kata_runtime.pod import kvm_failure, sealing
from kata_runtime.pod.sealing import Sealed
from kata_runtime.resource import network

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_hypervisor.contract import Vmm
    from kata_hypervisor.errors import HostUnfitError
    from kata_runtime.broker.client import Broker
    from kata_runtime.identity import SandboxIdentity

_log = logging.getLogger(__name__)

T = TypeVar("T")

STAGES = ("config", "host", "files", "vmm", "seal", "agent", "guest")
"""In order. The last two are a Linux guest's: a unikernel runs when its container starts."""

MakeBoot = Callable[["Configuration"], Awaitable[GuestBoot]]


@dataclass(frozen=True, slots=True)
class Booted:
    """What a sandbox has from the end of its boot on.

    vmm_pid: process id of the VMM on the host; 0 without one. at: nanoseconds since the epoch.
    """

    configuration: Configuration
    guest: Guest
    seal: Sealed
    vmm_pid: int
    at: int


class Boot:
    """One boot. spec: the OCI specification of the first container. inherited: see `sealing.seal`."""

    def __init__(
        self, identity: SandboxIdentity, broker: Broker, spec: JsonObject, *, inherited: int
    ) -> None:
        self._identity = identity
        self._broker = broker
        self._spec = spec
        self._inherited = inherited
        self._begin = time.monotonic()
        self._durations: list[str] = []

    @property
    def duration(self) -> str:
        """How long it has taken, and each of its stages, for the log."""
        return f"{(time.monotonic() - self._begin) * 1e3:.0f} ms ({', '.join(self._durations)})"

    async def configure(self, config_path: str | None) -> Configuration:
        """Take the first stage: read the configuration.

        Raises:
            UnsupportedError: the pod asks for the host's network. ConfigurationError, SandboxError.
        """
        network.namespace_of(self._spec)  # the first thing: no pod is started in the host's network
        return await self._run_stage("config", self._load(config_path))

    async def run(
        self, configuration: Configuration, make_boot: MakeBoot, ready: Callable[[], None]
    ) -> Booted:
        """Take the other stages. ready: called at their end; the boot fails with what it raises.

        Raises:
            SandboxError: a stage failed. Other errors of a stage are raised as they are.
        """
        await self._run_stage("host", self._prepare_host(configuration))
        boot = await self._run_stage("files", make_boot(configuration))
        stop = boot.stop
        try:
            # Meanwhile this process gets ready to be sealed.
            await self._run_stage("vmm", gather(boot.prepare, sealing.get_ready))
            for line in boot.machine.warnings:
                _log.warning("%s", line)
            seal = await self._run_stage("seal", self._seal(configuration, boot.machine))
            guest = await boot.start(self._run_stage)
            stop = guest.stop
            ready()
        except BaseException as error:
            if (unfit := await finish(self._give_up(error, configuration, stop))) is not None:
                raise unfit from error
            raise
        return Booted(configuration, guest, seal, vmm_pid_of(boot.machine), time.time_ns())

    async def _prepare_host(self, configuration: Configuration) -> None:
        await self._broker.prepare((self._spec.get("linux") or {}).get("cgroupsPath"))
        runtime = configuration.runtime
        await self._broker.take_user(runtime.sandbox_uid_base, runtime.sandbox_uid_count)

    async def _give_up(
        self, error: BaseException, configuration: Configuration, stop: Callable[[], Awaitable[None]]
    ) -> HostUnfitError | None:
        """Stop what there is of the guest; return the cause of the error where that is this host's KVM."""
        try:
            return await kvm_failure.explain(error, configuration, self._broker)
        finally:
            await stop()

    async def _load(self, config_path: str | None) -> Configuration:
        from kata_configuration import Severity, discover, load

        path, rule = discover(config_path, os.environ)
        configuration = load(path, source=rule, annotations=annotations_of(self._spec))
        set_level(configuration.runtime.log_level, debug=configuration.runtime.enable_debug)
        _log.info("%s", configuration)
        for found in configuration.warnings:
            _log.log(logging.INFO if found.severity is Severity.NOTE else logging.WARNING, "%s", found)
        return configuration

    async def _seal(self, configuration: Configuration, machine: Vmm) -> Sealed:
        return await sealing.seal(configuration, machine, self._broker, self._inherited)

    async def _run_stage(self, name: str, work: Awaitable[T]) -> T:
        begin = time.monotonic()
        try:
            result = await work
        except (OSError, RpcError, TimeoutError) as error:
            raise SandboxError(
                name, f"cannot start sandbox {self._identity.id}: stage {name} failed: {error}"
            ) from error
        self._durations.append(f"{name} {(time.monotonic() - begin) * 1e3:.0f} ms")
        return result


def vmm_pid_of(machine: Vmm) -> int:
    """Process id of the VMM on the host; 0 without one."""
    return machine.processes[0].child.pid if machine.processes else 0
