"""A sandbox: one virtual machine, its guest agent, and the watch over both.

`boot` takes the stages in order and undoes all of them when one fails; afterwards the sandbox either runs,
or has ended with a reason that every later call repeats.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.abc

from kata_agent.constants import FEATURE_STREAM_IO
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.contract import Disk, Vmm
from kata_hypervisor.seccomp.confinement import inherited_filters
from kata_runtime.concurrency import gather, race
from kata_runtime.container.bundle import JsonObject, annotations_of
from kata_runtime.errors import SandboxError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.logging import set_level
from kata_runtime.pod import machine_spec, sealing
from kata_runtime.pod.health import HealthCheck, describe
from kata_runtime.pod.reseed import Reseed

if TYPE_CHECKING:
    from kata_agent.client import AgentClient
    from kata_agent.transport import GuestTransport
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.unikernel.guest import UnikernelGuest

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ready:
    """What is ready for a sandbox's first container: disks of the guest, or the unikernel that it is."""

    disks: tuple[Disk, ...] = ()
    unikernel: UnikernelGuest | None = None


MakeReady = Callable[[str | None], Awaitable[Ready]]


class Sandbox:
    """One VM and its agent. `on_end` is called once, with the reason, when it ends unasked."""

    def __init__(
        self,
        identity: SandboxIdentity,
        broker: Broker,
        tasks: anyio.abc.TaskGroup,
        *,
        on_end: Callable[[str], None],
        on_oom: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self.broker = broker
        self.configuration: Configuration | None = None
        self.ended: str | None = None
        self.stream_io = False
        self.seal = sealing.NOT_YET
        # Made by the sandbox service, which also ends it: it outlives its containers.
        self.lasting = False
        self._tasks = tasks
        self._on_end = on_end
        self._on_oom = on_oom
        self._hypervisor: Vmm | None = None
        self._transport: GuestTransport | None = None
        self._agent: AgentClient | None = None
        self._reseed: Reseed | None = None
        self._watchers = anyio.CancelScope()
        self._inherited = inherited_filters()

    @property
    def running(self) -> bool:
        """Whether the guest can be asked for something."""
        return self._agent is not None and self.ended is None

    @property
    def agent(self) -> AgentClient:
        """The guest's agent.

        Raises:
            SandboxError: the sandbox has not been booted, or has ended.
        """
        if self.ended is not None:
            raise SandboxError("running", f"the sandbox {self.identity.id} has ended: {self.ended}")
        if self._agent is None:
            raise SandboxError("running", f"the sandbox {self.identity.id} is not running yet")
        return self._agent

    @property
    def hypervisor(self) -> Vmm:
        """Who runs the machine. Raises as `agent` does."""
        if self._hypervisor is None:
            raise SandboxError("running", f"the sandbox {self.identity.id} is not running")
        return self._hypervisor

    @property
    def vmm_pid(self) -> int:
        """Process id of the VMM on the host; 0 before it was started."""
        processes = self._hypervisor.processes if self._hypervisor else ()
        return processes[0].child.pid if processes else 0

    @property
    def transport(self) -> GuestTransport:
        """How to reach the guest's ports. Raises as `agent` does."""
        if self._transport is None:
            raise SandboxError("running", f"the sandbox {self.identity.id} is not running")
        return self._transport

    async def boot(
        self, spec: JsonObject, config_path: str | None, make_ready: MakeReady | None = None
    ) -> None:
        """Start the virtual machine and its agent; a unikernel is made ready, and starts with its container.

        spec: the OCI specification of the sandbox's first container, for annotations, size, hostname and
        cgroup. Annotations of later containers set nothing: the virtual machine exists by then.
        make_ready: makes that container's files ready. It is told the name in the guest of the disk that they
        are to be on, or None where files are shared.

        Raises:
            SandboxError: a stage failed; nothing is left of it.
        """
        begin = time.monotonic()
        stages: list[str] = []
        try:
            self.configuration = await self._stage("config", stages, self._load(config_path, spec))
            await self._stage("host", stages, self._prepare_host(spec))
            ready = await self._stage("files", stages, self._make_ready(make_ready))
            await self._stage("vmm", stages, self._prepare_machine(spec, ready))
            await self._stage("seal", stages, self._seal())
            if ready.unikernel is None:
                await self._stage("agent", stages, self._run_machine())
                await self._stage("guest", stages, self._prepare_guest(spec))
        except BaseException as error:
            self.ended = str(error).partition("\n")[0] or type(error).__name__
            _log.error("sandbox %s did not start: %s", self.identity.id, error)
            with anyio.CancelScope(shield=True):
                await self.stop()
            if isinstance(error, Exception) and (cause := self.broker.fault):
                # What was seen first may only be a consequence of it.
                raise SandboxError("host", cause) from error
            raise
        if ready.unikernel is None:  # whose end is its container's end, and is seen there
            self._tasks.start_soon(self._watch)
        _log.info(
            "sandbox %s is running after %.0f ms (%s); %s",
            self.identity.id,
            (time.monotonic() - begin) * 1e3,
            ", ".join(stages),
            self.seal.description,
        )

    async def _stage(self, name: str, stages: list[str], work: Awaitable[T]) -> T:
        begin = time.monotonic()
        try:
            result = await work
        except SandboxError:
            raise
        except (OSError, RpcError, TimeoutError) as error:
            raise SandboxError(name, f"sandbox {self.identity.id}, stage {name}: {error}") from error
        stages.append(f"{name} {(time.monotonic() - begin) * 1e3:.0f} ms")
        return result

    async def _load(self, config_path: str | None, spec: JsonObject) -> Configuration:
        from kata_configuration import Severity, discover, load

        path, rule = discover(config_path, os.environ)
        configuration = load(path, source=rule, annotations=annotations_of(spec))
        set_level(configuration.runtime.log_level, debug=configuration.runtime.enable_debug)
        _log.info("%s", configuration)
        for found in configuration.warnings:
            _log.log(logging.INFO if found.severity is Severity.NOTE else logging.WARNING, "%s", found)
        return configuration

    async def _prepare_host(self, spec: JsonObject) -> None:
        cgroup = (spec.get("linux") or {}).get("cgroupsPath")
        await self.broker.prepare(cgroup)

    @property
    def shares_files(self) -> bool:
        """Whether the guest sees files of the host. Known when the configuration was read."""
        if self.configuration is None:
            return True
        # What runs unikernels only has no such key: their files stay where they are.
        return getattr(self.configuration.hypervisor, "shared_fs", None) != "none"

    async def _make_ready(self, make_ready: MakeReady | None) -> Ready:
        """Make the first container's files ready before the guest runs."""
        assert self.configuration is not None
        if make_ready is None:
            return Ready()
        if self.shares_files:
            return await make_ready(None)
        number = 1 if self.configuration.hypervisor.image is not None else 0
        return await make_ready(f"/dev/vd{chr(ord('a') + number)}")

    async def _prepare_machine(self, spec: JsonObject, ready: Ready) -> None:
        """Make the machine ready to run, and meanwhile this process to be sealed."""

        async def make() -> None:
            if ready.unikernel is not None:
                await self._make_unikernel(ready.unikernel)
            else:
                await self._make_machine(spec, ready.disks)

        await gather(make, sealing.get_ready)

    async def _make_unikernel(self, guest: UnikernelGuest) -> None:
        from kata_agent.client import AgentClient

        assert self.configuration is not None
        self._transport, self.stream_io = guest, True
        self._agent = AgentClient(guest)
        self._hypervisor = await guest.prepare(self.configuration, self.identity, self.broker)
        self._tell_warnings()

    async def _seal(self) -> None:
        assert self.configuration is not None
        self.seal = await sealing.seal(self.configuration, self.hypervisor, self.broker, self._inherited)

    async def _make_machine(self, spec: JsonObject, disks: tuple[Disk, ...]) -> None:
        from kata_hypervisor import registry

        assert self.configuration is not None
        table, name = self.configuration.hypervisor, self.configuration.hypervisor_name
        self._hypervisor = hypervisor = registry.create(name, table, self.broker)
        machine = machine_spec.machine_of(self.configuration, self.identity, spec, disks)
        if machine.template is not None:
            self._reseed = Reseed()
        await hypervisor.prepare(machine)
        self._transport = hypervisor.transport
        self._tell_warnings()

    def _tell_warnings(self) -> None:
        for line in self.hypervisor.warnings:
            _log.warning("%s", line)

    async def _run_machine(self) -> None:
        await self.hypervisor.run()
        await self._reach_agent()

    async def _reach_agent(self) -> None:
        """Connect to the agent, unless the machine or a helper ends first: whatever comes first is told."""
        from kata_agent.client import AgentClient

        assert self.configuration is not None
        budget = self.configuration.agent.reconnect_timeout_ms / 1e3
        interval = self.configuration.agent.dial_timeout_ms / 1e3
        timeout = float(self.configuration.agent.create_container_timeout)
        transport = self.transport

        async def connect() -> None:
            self._agent = await AgentClient.connect(
                transport, interval=interval, deadline=budget, timeout=timeout
            )

        try:
            await self._or_death(connect)
        except (TimeoutError, OSError) as error:
            tail = self.hypervisor.console_tail.strip()
            raise SandboxError(
                "agent",
                f"the guest's agent did not answer within {budget:g} s, while the VMM runs ({error}): "
                f"see what kata-ctl check says of this host, check the guest image, "
                f"or raise reconnect_timeout_ms in [agent.kata]\nguest console:\n{tail or '(silent)'}",
            ) from None

    async def _or_death(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await something of the guest; the end of the machine ends the wait with its reason."""

        async def watch() -> T:
            raise SandboxError("agent", describe(await self.hypervisor.wait()))

        return await race(work, watch)

    async def _prepare_guest(self, spec: JsonObject) -> None:
        assert self.configuration is not None
        request = machine_spec.request_of(self.configuration, self.identity, spec)

        async def prepare() -> None:
            if self._reseed is not None:
                await self._reseed.give(self.agent)
            details = await self.agent.get_guest_details(agent_pb2.GuestDetailsRequest(mem_block_size=True))
            self.stream_io = FEATURE_STREAM_IO in details.agent_details.extra_features
            await self.agent.create_sandbox(request)

        await self._or_death(prepare)
        await self.hypervisor.verify_confinement()

    async def stop(self) -> None:
        """End the machine, polite to nobody; what it had on the host is undone by the broker. Idempotent."""
        self._watchers.cancel()
        if self.ended is None:
            self.ended = "it was stopped"
        agent, self._agent = self._agent, None
        if agent is not None:
            await agent.aclose()
        if self._hypervisor is not None:
            await self._hypervisor.stop()

    # -- the watch over a running sandbox ------------------------------------------------------------------

    async def _watch(self) -> None:
        assert self.configuration is not None
        timeout = self.configuration.agent.health_check_request_timeout_ms / 1e3
        with self._watchers:
            await self.fail(await HealthCheck(self.hypervisor, self.agent, timeout, self._on_oom).end())

    async def fail(self, reason: str) -> None:
        """End the sandbox because it cannot go on; the first line of the reason is what users see."""
        if self.ended is not None:
            return
        self.ended = reason.partition("\n")[0]
        _log.error("sandbox %s has ended: %s", self.identity.id, reason)
        self._on_end(self.ended)
        with anyio.CancelScope(shield=True):
            await self.stop()


@contextlib.contextmanager
def in_the_guest(sandbox: Sandbox, action: str) -> Iterator[None]:
    """Say what was attempted when the guest refuses it, or why there is no guest any more."""
    try:
        yield
    except RpcError as error:
        if error.code is Code.UNAVAILABLE and sandbox.ended is not None:
            raise SandboxError("running", f"cannot {action}: {sandbox.ended}") from error
        raise RpcError(error.code, f"cannot {action}: {error.message}") from error
