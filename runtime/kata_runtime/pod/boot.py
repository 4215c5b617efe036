"""The boot of a sandbox: stage after stage, and all of them undone when one fails.

An error of the system's or of the guest's names the stage in which it came.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kata_agent.ttrpc.status import RpcError
from kata_hypervisor.concurrency import finish, gather
from kata_runtime.container.bundle import JsonObject, annotations_of
from kata_runtime.container.guest import Guest, GuestBoot
from kata_runtime.errors import SandboxError
from kata_runtime.logging import HYPERVISOR, RUNTIME, level_of, set_level
from kata_runtime.pod import kvm_failure, sealing
from kata_runtime.pod.hooks import Hooks
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

SLOW = 10.0
"""Seconds after which a stage is logged as slow, and again after as many; nothing else comes of it."""

STAGES = ("config", "host", "files", "hooks", "vmm", "seal", "agent", "guest")
"""In order. The last two are a Linux guest's: a unikernel runs when its container starts."""

MakeBoot = Callable[["Configuration"], Awaitable[GuestBoot]]


class Booted(NamedTuple):
    """What a sandbox has from the end of its boot on.

    vmm_pid: process id of the VMM on the host; 0 without one. at: nanoseconds since the epoch.
    """

    configuration: Configuration
    guest: Guest
    seal: Sealed
    vmm_pid: int
    at: int


class Boot:
    """One boot: `configure`, `prepare`, and `run`, before which any time may pass.

    spec: the OCI specification of the first container. inherited: see `sealing.seal`. pid: of the pod's init,
    which lives as long as the broker; 0 before `prepare`. hooks: of the first container.
    """

    def __init__(
        self, identity: SandboxIdentity, broker: Broker, spec: JsonObject, *, inherited: int
    ) -> None:
        self.pid = 0
        self.hooks = Hooks(broker)
        self._identity = identity
        self._broker = broker
        self._spec = spec
        self._inherited = inherited
        self._guest: GuestBoot | None = None
        self._machine: Vmm | None = None
        self._took = 0.0
        self._durations: list[str] = []
        self._waits_for = ""

    @property
    def waits_for(self) -> str:
        """What is waited for, with the last line of the guest's console; nothing outside of the stages."""
        lines = self._machine.console_tail.strip().splitlines() if self._machine is not None else []
        if not self._waits_for or not lines:
            return self._waits_for
        return f"{self._waits_for}; the guest's console ends with: {lines[-1]}"

    @property
    def duration(self) -> str:
        """How long its stages have taken, for the log."""
        return f"{self._took * 1e3:.0f} ms ({', '.join(self._durations)})"

    async def configure(self, config_path: str | None) -> Configuration:
        """Take the first stage: read the configuration.

        Raises:
            UnsupportedError: the pod asks for the host's network. ConfigurationError, SandboxError.
        """
        network.namespace_of(self._spec)  # the first thing: no pod is started in the host's network
        configuration = await self._run_stage("config", self._load(config_path))
        self._broker.patience = float(configuration.agent.create_container_timeout)
        return configuration

    async def prepare(self, configuration: Configuration, make_boot: MakeBoot) -> None:
        """Take the stages before those of the machine: the pod has its namespaces, files and hooks' work.

        Raises:
            SandboxError: a stage failed. Other errors of a stage are raised as they are.
        """
        await self._run_stage("host", self._prepare_host(configuration))
        self._guest = await self._run_stage("files", make_boot(configuration))
        await self._run_stage("hooks", self.hooks.create())

    async def stop(self) -> None:
        """Undo what `prepare` has made in this process, where `run` does not follow. Idempotent."""
        guest, self._guest = self._guest, None
        if guest is not None:
            await guest.stop()

    async def run(self, configuration: Configuration, ready: Callable[[], None]) -> Booted:
        """Take the other stages. ready: called at their end; the boot fails with what it raises.

        Raises as `prepare` does.
        """
        boot, self._guest = self._guest, None
        assert boot is not None  # it was prepared
        stop = boot.stop
        self._machine = boot.machine
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
        await self.hooks.learn(self._spec)
        runtime = configuration.runtime
        cgroup = (self._spec.get("linux") or {}).get("cgroupsPath")
        await self._broker.prepare(cgroup, pinning=runtime.enable_vcpus_pinning)
        await self._broker.take_user(runtime.sandbox_uid_base, runtime.sandbox_uid_count)
        self.pid = await network.learn(self._broker, self._spec, outside=runtime.disable_new_netns)

    async def _give_up(
        self, error: BaseException, configuration: Configuration, stop: Callable[[], Awaitable[None]]
    ) -> HostUnfitError | None:
        """Stop what there is of the guest; return the cause of the error where that is this host's KVM."""
        try:
            return await kvm_failure.explain(error, configuration, self._broker)
        finally:
            await stop()

    async def _load(self, config_path: str | None) -> Configuration:
        from kata_configuration import Severity, discover, kept

        path, rule = discover(config_path, os.environ)
        configuration = kept.load(path, source=rule, annotations=annotations_of(self._spec))
        _set_levels(configuration)
        _log.info("%s", configuration)
        for found in configuration.warnings:
            _log.log(logging.INFO if found.severity is Severity.NOTE else logging.WARNING, "%s", found)
        return configuration

    async def _seal(self, configuration: Configuration, machine: Vmm) -> Sealed:
        return await sealing.seal(configuration, machine, self._broker, self._inherited)

    async def _run_stage(self, name: str, work: Awaitable[T]) -> T:
        begin = time.monotonic()
        self._waits_for = f"stage {name}"
        slow = asyncio.create_task(self._report_slow(begin), name=f"watch over stage {name}")
        try:
            result = await work
            self._waits_for = ""
        except (OSError, RpcError, TimeoutError) as error:
            raise SandboxError(
                name, f"cannot start sandbox {self._identity.id}: stage {name} failed: {error}"
            ) from error
        finally:
            slow.cancel()
        took = time.monotonic() - begin
        self._took += took
        self._durations.append(f"{name} {took * 1e3:.0f} ms")
        return result

    async def _report_slow(self, begin: float) -> None:
        while True:
            await asyncio.sleep(SLOW)
            _log.warning(
                "sandbox %s still waits after %.0f s for %s",
                self._identity.id,
                time.monotonic() - begin,
                self.waits_for,
            )


def vmm_pid_of(machine: Vmm) -> int:
    """Process id of the VMM on the host; 0 without one."""
    return machine.processes[0].child.pid if machine.processes else 0


def _set_levels(configuration: Configuration) -> None:
    """Log as the configuration says; what containerd asked for at debug stays."""
    runtime, hypervisor = configuration.runtime, configuration.hypervisor
    if level_of(RUNTIME) != "debug":
        set_level(RUNTIME, "debug" if runtime.enable_debug else runtime.log_level)
    set_level(HYPERVISOR, "debug" if hypervisor.enable_debug else hypervisor.log_level)
