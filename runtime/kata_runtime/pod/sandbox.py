"""A sandbox: one virtual machine and its guest, in one of the states of `pod/states.py`.

`boot` leaves a sandbox that runs, or one that has ended with a reason that every later call repeats. Others
ask it for what they need; nobody else knows of its parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.concurrency import finish, race
from kata_hypervisor.seccomp.confinement import inherited_filters
from kata_runtime.broker.hook_kinds import POSTSTART
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.guest import Guest
from kata_runtime.errors import SandboxError, UnsupportedError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.pod.boot import Boot, Booted, MakeBoot
from kata_runtime.pod.states import Event, Lifecycle, State
from kata_runtime.resource import network

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker

_log = logging.getLogger(__name__)


END_BUDGET = 10.0
"""Seconds in which a sandbox whose guest has hung up is seen to have ended; then the bare error is told."""


class Sandbox:
    """One machine and its guest.

    on_end: called once, with the reason, when it fails while it boots or runs. on_oom: called with a
    container's id when the guest's kernel kills a process of it for want of memory.
    """

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
        self._broker = broker
        self._tasks = tasks
        self._on_end = on_end
        self._on_oom = on_oom
        self._life = Lifecycle(identity.id)
        self._configuration: Configuration | None = None
        self._booted: Booted | None = None
        self._boot: Boot | None = None
        self._outlives_containers = False
        # The boot may be under way when the sandbox ends.
        self._booting = anyio.CancelScope()
        self._boot_over: anyio.Event | None = None  # while WAITING, of what came before
        self._supervision = anyio.CancelScope()
        self._inherited = inherited_filters()

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._life.state

    @property
    def running(self) -> bool:
        """Whether the guest can be asked for something."""
        return self._life.state is State.RUNNING

    @property
    def description(self) -> str:
        """Its id and its state as a sentence, with the reason once it has ended."""
        return self._life.description

    @property
    def booted(self) -> Booted:
        """What it has while it runs. Raises SandboxError in any other state."""
        if self._booted is None or not self.running:
            raise SandboxError("running", self._life.description)
        return self._booted

    @property
    def guest(self) -> Guest:
        """Who is asked for containers and processes. Raises SandboxError unless it runs."""
        return self.booted.guest

    @property
    def pid(self) -> int:
        """Process id of the pod's init on the host, also after the end; 0 before there is one.

        It is in the pod's network namespace, in which clients of containerd look for it by this process.
        """
        return self._boot.pid if self._boot is not None else 0

    @property
    def vmm_pid(self) -> int:
        """Process id of the VMM on the host, also after the end; 0 before its boot, or without one."""
        return self._booted.vmm_pid if self._booted is not None else 0

    @property
    def outlives_containers(self) -> bool:
        """Whether the sandbox service made it, which also ends it."""
        return self._outlives_containers

    @property
    def booted_at(self) -> int:
        """When its boot was over, in nanoseconds since the epoch; 0 before."""
        return self._booted.at if self._booted is not None else 0

    @property
    def ended_at(self) -> int:
        """When it ended, in nanoseconds since the epoch; 0 before."""
        return self._life.ended_at

    def report(self) -> Mapping[str, str]:
        """What SandboxStatus says: its configuration, once that was read, its size, and why it has ended."""
        facts: dict[str, str] = {}
        if (configuration := self._configuration) is not None:
            facts["configuration"] = str(configuration.path)
            facts["configuration-sha256"] = configuration.sha256
            facts["hypervisor"] = configuration.hypervisor_name
        if self.running and (machine := self.guest.machine):
            facts["machine"] = machine
        if self._life.reason is not None:
            facts["reason"] = self._life.reason
        return facts

    async def check_network(self, action: str) -> None:
        """Refuse an action while the pod has a network that its guest has not.

        Raises:
            UnsupportedError: a client has put interfaces into the pod's namespace after Create.
        """
        if names := await self._broker.late_interfaces():
            raise UnsupportedError(
                f"cannot {action}: the pod's network namespace got {', '.join(names)} after its machine was "
                "made, when the guest cannot be given it; let one client or hook give the pod all of its "
                "interfaces"
            )

    async def run_hooks(self, kind: str) -> None:
        """Run the first container's hooks of a kind whose failure is a warning, once; see `Hooks.warn`.

        Those of "poststart" are given up with the sandbox: a hook that does not end would hold up the next.
        """
        if self._boot is None:
            return
        warn = partial(self._boot.hooks.warn, kind)
        await (race(warn, self.wait_ended) if kind == POSTSTART else warn())

    @contextlib.asynccontextmanager
    async def asked_to(self, action: str) -> AsyncIterator[Guest]:
        """Give the guest for one action; say what was attempted when it refuses, or has ended meanwhile.

        Raises:
            SandboxError: the sandbox does not run, or not any more.
            RpcError: the guest's agent refused the action.
        """
        try:
            yield self.guest
        except RpcError as error:
            if error.code is Code.UNAVAILABLE and await self.has_hung_up():
                raise SandboxError("running", f"cannot {action}: {self._life.description}") from error
            raise RpcError(error.code, f"cannot {action}: {error.message}") from error

    async def has_hung_up(self) -> bool:
        """Whether a guest whose connection has ended is found dead: `description` says more then."""
        with anyio.move_on_after(END_BUDGET):
            await self._life.wait_ended()
        return self._life.state is State.ENDED

    # -- its boot ------------------------------------------------------------------------------------------

    async def boot(
        self,
        spec: JsonObject,
        config_path: str | None,
        make_boot: MakeBoot,
        *,
        outlives_containers: bool = False,
        may_wait: bool = False,
    ) -> None:
        """Start the virtual machine and its guest; a unikernel is made ready, and starts with its container.

        may_wait: whether it is WAITING afterwards, until `boot_waiting`, where the pod has no network yet:
        clients that give it one do so between Create and Start.

        spec: the OCI specification of the sandbox's first container, for annotations, size, hostname and
        cgroup. Annotations of later containers set nothing: the virtual machine exists by then.
        make_boot: makes ready what the guest needs of the host's files, and says what kind of guest it is.

        Raises:
            StateError: it was booted before, or is being booted by another, which nothing happens to.
            SandboxError: a stage failed, or the sandbox was ended meanwhile; nothing is left of it. Other
                errors of a stage are raised as they are.
        """
        self._life.apply(Event.BOOT)
        self._outlives_containers = outlives_containers
        boot = self._boot = Boot(self.identity, self._broker, spec, inherited=self._inherited)

        async def work() -> None:
            self._configuration = await boot.configure(config_path)
            await boot.prepare(self._configuration, make_boot)
            described = network.described_at(self._configuration.runtime.dan_conf, self.identity.id)
            if may_wait and not await network.is_known(self._broker, described):
                self._life.apply(Event.WAIT)
            else:
                await self._run(boot, self._configuration)

        await self._attempt(work)

    async def boot_waiting(self) -> None:
        """Start the machine of a sandbox that is WAITING, with the network that there is now.

        Raises as `boot` does.
        """
        self._life.apply(Event.BOOT)
        boot, configuration = self._boot, self._configuration
        assert boot is not None
        assert configuration is not None
        await self._attempt(lambda: self._run(boot, configuration))

    async def _run(self, boot: Boot, configuration: Configuration) -> None:
        booted = self._booted = await boot.run(configuration, self._ready)
        self._tasks.start_soon(self._supervise, booted.guest)
        _log.info(
            "sandbox %s is running after %s; %s", self.identity.id, boot.duration, booted.seal.description
        )

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do a part of the boot, which `_release` can break off; record its failure."""
        self._booting = anyio.CancelScope()
        self._boot_over = anyio.Event()
        try:
            with self._booting:
                await work()
        except BaseException as error:
            self._record_failure(error)
            if isinstance(error, Exception) and (cause := self._broker.fault):
                # What was seen first may only be a consequence of it.
                raise SandboxError("host", cause) from error
            raise
        finally:
            if self._life.state is State.ENDED:
                await finish(self._boot_stop())
                self._life.release()
            self._boot_over.set()
        if self._booting.cancelled_caught:
            raise SandboxError("host", self._broker.fault or self._life.description)

    async def _boot_stop(self) -> None:
        if self._boot is not None:
            await self._boot.stop()

    def _ready(self) -> None:
        self._life.apply(Event.READY)

    def _record_failure(self, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        reason = str(error)
        if cancelled:
            reason = "the request that booted it was cancelled, or its deadline has passed"
            if self._boot is not None and (awaited := self._boot.waits_for):
                reason += f", while it waited for {awaited}"
        _log.error("sandbox %s did not start: %s", self.identity.id, reason)
        self._life.end(reason or type(error).__name__)

    # -- its end -------------------------------------------------------------------------------------------

    async def stop(self, reason: str = "it was stopped") -> None:
        """End the machine, polite to nobody; what it had on the host is undone by the broker. Idempotent."""
        self._life.end(reason)
        await finish(self._release())

    async def fail(self, reason: str) -> None:
        """End the sandbox because it cannot go on; the first line of the reason is what users see."""
        if self._life.end(reason):
            _log.error("sandbox %s has ended: %s", self.identity.id, reason)
            self._on_end(reason.partition("\n")[0])
            await finish(self._release())

    async def wait_ended(self) -> None:
        """Return once it has ended, and nothing is left of its machine."""
        await self._life.wait_released()

    async def _release(self) -> None:
        """After the end was recorded: break off the boot, or stop the guest. Any number of times at once."""
        self._booting.cancel()
        if self._boot_over is not None:
            await self._boot_over.wait()
        self._supervision.cancel()
        if self._booted is not None:
            await self._booted.guest.stop()
        await self._boot_stop()
        self._life.release()

    async def _supervise(self, guest: Guest) -> None:
        with self._supervision:
            await self.fail(await guest.failure(self._on_oom))
