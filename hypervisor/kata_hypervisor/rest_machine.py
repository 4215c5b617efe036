"""What the drivers of VMMs with a REST interface have in common: one machine's start, commands and end.

Prepare:  host checks -> processes -> its API answers -> version -> confinement verified -> the machine,
          described to it. Or it restores a saved one, whose virtual CPUs exist by then, and are verified too.
          Then the host holds the API, and passes on what the driver declares.
Run:      it starts the virtual CPUs -> what runs then is verified.
End:      see `ProcessLifecycle`.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import anyio

from kata_agent.transport import GuestTransport
from kata_agent.transports import HybridVsockTransport
from kata_hypervisor import exit_reason, host_checks, saved_machine
from kata_hypervisor.children import Children
from kata_hypervisor.contract import Hypervisor, VmExit, VmSpec, check_supported
from kata_hypervisor.errors import (
    ConfinementError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
    SnapshotError,
)
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import ProcessLifecycle
from kata_hypervisor.rest import RefusedError, RestClient, RestError, Step
from kata_hypervisor.seccomp.confinement import ThreadConfinement, find_breach, inherited_filters
from kata_hypervisor.virtiofsd import NAME as VIRTIOFSD

CONSOLE = "console"

POLL = 0.005
"""Seconds between two looks at whether the VMM listens."""

DYING = 2.0
"""Seconds that the kernel may take to tear down a VMM whose helper has seen it go."""

T = TypeVar("T")


class Table(Protocol):
    """What of a VMM's table of the configuration is read here."""

    @property
    def path(self) -> Path: ...
    @property
    def confined(self) -> bool: ...
    @property
    def enable_debug(self) -> bool: ...


class RestMachine(ProcessLifecycle, Hypervisor):
    """One virtual machine in a VMM that is driven over REST.

    table: the VMM's table of the configuration. host: starts the processes. start_budget, stop_budget:
    seconds that the VMM gets to be prepared, to run and to answer, the host's patience without; and to end
    by itself.

    Make it before the caller seals itself: how many filters a child inherits is read here.
    """

    hints: ClassVar[exit_reason.Hints] = ()
    _hang_ups = (RestError, ProcessLookupError, OSError)
    _refusals = (RefusedError,)
    # What of the configuration takes the filters away, where something does.
    _excuse = "disable_seccomp = true"

    def __init__(
        self, table: Table, host: Host, *, start_budget: float | None = None, stop_budget: float = 2.0
    ) -> None:
        self._start_budget = host.patience if start_budget is None else start_budget
        self._stop_budget = stop_budget
        self._inherited = inherited_filters()
        self._confined = table.confined
        self._children = Children(host, logging.getLogger(f"{__name__}.{self.vmm}"))
        self._host = host
        self._client: RestClient | None = None
        self._transport: GuestTransport | None = None
        self._warnings: list[str] = []
        # How many filters each of its threads has from its start.
        self._born_with = self._inherited
        self._prepared = False
        self._restored = False
        self._running = False
        self._saved_to: Path | None = None

    # -- what each driver does its own way -----------------------------------------------------------------

    @abc.abstractmethod
    def _check_host(self, spec: VmSpec) -> list[str]:
        """Check what can be checked without starting anything; return warnings. Raises HostUnfitError."""

    @abc.abstractmethod
    async def _spawn(self, spec: VmSpec) -> GuestTransport | None:
        """Start the processes; return the way to the guest, where it has one."""

    @abc.abstractmethod
    async def _connect(self) -> RestClient:
        """Connect to the API as soon as it is there."""

    @abc.abstractmethod
    async def _version(self, client: RestClient) -> str:
        """Ask the VMM for its version."""

    @abc.abstractmethod
    def _steps(self, spec: VmSpec) -> Iterator[Step]:
        """The requests that describe the machine, in order."""

    @abc.abstractmethod
    def _restoring(
        self, spec: VmSpec, template: Path, version: str, lent: contextlib.ExitStack
    ) -> Iterator[Step]:
        """The requests that restore a saved machine and leave it paused. lent: undone when they are answered.

        Raises:
            NotSupportedError: this version of the VMM cannot.
        """

    @abc.abstractmethod
    async def _boot(self, client: RestClient) -> None:
        """Let the virtual CPUs run."""

    @abc.abstractmethod
    def _find_breach(self, threads: Sequence[ThreadConfinement], *, running: bool) -> str | None:
        """Compare what the kernel reports with what is configured; a sentence where they differ."""

    @abc.abstractmethod
    async def _ask_to_quit(self, client: RestClient) -> None:
        """Ask the VMM to exit."""

    def _own_reason(self) -> str | None:
        """What the guest did, when the VMM reported it and then exited because of it."""
        return None

    # -- start ---------------------------------------------------------------------------------------------

    async def prepare(self, spec: VmSpec) -> None:
        """See the contract."""
        check_supported(self.vmm, self.capabilities, spec)
        await self._launch(
            f"virtual machine of {spec.sandbox_id}",
            lambda: self._spawn_all(spec),
            lambda: self._connect_and_describe(spec),
        )

    async def _spawn_all(self, spec: VmSpec) -> None:
        self._warnings = self._check_host(spec)
        host_checks.check_room(spec.memory_mib, spec.kernel, spec.initrd, self.section)
        if not self._confined:
            self._warnings.append(
                f"{self.vmm} runs unconfined: {self._excuse} in {self.section} turns its seccomp filter off"
            )
        self._transport = await self._spawn(spec)
        if self._transport is not None:
            self._children.ours.push_async_callback(self._transport.aclose)

    async def _connect_and_describe(self, spec: VmSpec) -> None:
        deadline = anyio.current_time() + self._start_budget
        client = await self._attempt(f"waiting for {self.vmm}'s API", deadline, self._connect())
        self._client = client
        self._children.ours.push_async_callback(client.aclose)
        version = await self._attempt(f"asking {self.vmm} for its version", deadline, self._version(client))
        if (supported := self.info.supported) and (warning := supported.version_warning(self.vmm, version)):
            self._warnings.append(warning)
        await self._attempt(f"reading {self.vmm}'s confinement", deadline, self._verify_confinement())
        await self._attempt(f"reading {self.vmm}'s filters", deadline, self._verify_filters())
        await self._describe(client, spec, version, deadline)
        hold = partial(self._host.hold_monitor, self.info.name, saved_to=spec.saved_to, limits=self._limits)
        await self._attempt(f"handing over {self.vmm}'s API", deadline, client.change_connection(hold))
        self._prepared = True

    @property
    def _limits(self) -> Mapping[str, Any] | None:
        """What limits each disk that comes later, where its description says so."""
        return None

    async def _describe(self, client: RestClient, spec: VmSpec, version: str, deadline: float) -> None:
        """Have the VMM make the machine that is wanted, or restore it where it is saved."""
        steps, restored = self._steps(spec), False
        with contextlib.ExitStack() as lent:
            if spec.template is not None:
                mismatch = self._identity(spec, version).mismatch(spec.template)
                self._warnings += [mismatch] if mismatch else []
                if restored := mismatch is None:
                    steps = self._restoring(spec, spec.template, version, lent)
            for step in steps:
                budget = max(0.0, deadline - anyio.current_time())
                request = client.request(step.method, step.path, step.body, fds=step.fds, budget=budget)
                await self._attempt(step.purpose, deadline, request)
        if restored:
            self._restored = True
            await self._attempt(f"reading {self.vmm}'s confinement", deadline, self._verify_confinement())
        if spec.saved_to is not None:
            self._identity(spec, version).write(spec.saved_to)
            self._saved_to = spec.saved_to

    def _identity(self, spec: VmSpec, version: str) -> saved_machine.Identity:
        described = [[step.path, step.body] for step in self._steps(spec)]
        return saved_machine.identity(self.vmm, version, spec, described)

    @classmethod
    def describe_template(cls, spec: VmSpec) -> Mapping[str, str]:
        """See the contract."""
        assert spec.template is not None
        return saved_machine.describe(spec.template)

    async def run(self) -> None:
        """See the contract."""
        client = self._client
        if client is None or not self._prepared or self._running or self._requested:
            raise LaunchError("cannot run the virtual machine: it is not prepared, or has run before")
        deadline = anyio.current_time() + self._start_budget
        try:
            await self._attempt("starting the virtual CPUs", deadline, self._boot(client))
            self._running = True
            await self._attempt(f"reading {self.vmm}'s confinement", deadline, self._verify_confinement())
        except BaseException:
            await self.stop()
            raise

    # -- confinement ---------------------------------------------------------------------------------------

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("cannot verify the confinement: the virtual machine is not running")
        try:
            await self._verify_confinement()
        except ProcessLookupError as error:
            raise HypervisorError(f"cannot verify the confinement: {self.vmm} has exited") from error

    async def _verify_confinement(self) -> None:
        threads = await self._host.confinement(self._children[self.vmm])
        # The virtual CPUs of a restored machine are there, and wait, before it runs.
        breach = self._find_breach(threads, running=self._running or self._restored)
        if breach is not None:
            raise ConfinementError(breach)

    def _breach_of(self, threads: Sequence[ThreadConfinement], confined: bool, inherited: int) -> str | None:
        """See `find_breach`, for this VMM and its table."""
        setting = f"disable_seccomp = {str(not self._confined).lower()} in {self.section}"
        return find_breach(threads, confined, inherited, process=self.vmm, required_by=setting)

    async def _verify_filters(self) -> None:
        if self._confined:
            await self._verify_effective(self._born_with, f"disable_seccomp = false in {self.section}")

    # -- commands ------------------------------------------------------------------------------------------

    async def _save(self, directory: Path, method: str, path: str, body: object) -> None:
        """Have the VMM write the paused machine where its identity is already. Raises SnapshotError."""
        if not self.capabilities.snapshot:
            raise NotSupportedError(f"a jailed {self.vmm} cannot write a snapshot outside of its jail")
        if directory != self._saved_to:
            raise SnapshotError(
                f"cannot save the machine in {directory}: it was not made to be saved there, but "
                f"{self._saved_to or 'nowhere'}"
            )
        try:
            await self._command("save the virtual machine", method, path, body, budget=math.inf)
        except HypervisorError as error:
            raise SnapshotError(str(error)) from error

    async def _command(
        self, purpose: str, method: str, path: str, body: object = None, *, budget: float | None = None
    ) -> Any:
        """Ask something of the running machine. The answer to a caller that is cancelled is dropped."""
        if self._client is None or self._end is None or not self._running:
            raise HypervisorError(f"cannot {purpose}: the virtual machine is not running")
        asking = asyncio.ensure_future(self._client.request(method, path, body, budget=budget))
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(asking)
        except RestError as error:
            why = self._end.result().reason if self._end.done() else str(error)
            raise HypervisorError(f"cannot {purpose}: {why}") from error

    # -- end -----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Wait for a VMM whose helper has seen it go, and which the kernel is still tearing down."""
        vmm = self._children[self.vmm]
        if vmm.exited is None and self._children[VIRTIOFSD].exited == ExitStatus(0):
            with anyio.move_on_after(DYING):
                await vmm.wait()

    def _conclude(self, exited: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        process = exit_reason.first_failure(self.vmm, VIRTIOFSD, exited)
        reason = self._own_reason() if process == self.vmm else None
        if requested:
            reason = f"{self.vmm} was stopped on request"
        if reason is None:
            stderr, console = self._children.tail(f"{process} stderr"), self._children.tail(CONSOLE)
            reason = exit_reason.describe(
                process, exited[process], stderr, console, running=self._running, hints=self.hints
            )
        reason = self._children[process].violation or reason
        return VmExit(reason, process, exited[process], requested, self._children.outputs)

    async def _quit(self) -> bool:
        if self._client is None:
            return False
        try:
            await self._ask_to_quit(self._client)
        except RestError:
            return False
        return True

    async def _api_at(self, path: Path) -> socket.socket:
        """Connect to the API's socket as soon as the VMM listens there; the caller sets the deadline."""
        while True:
            try:
                return await self._host.connect_vmm(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
                    raise
            await anyio.sleep(POLL)

    async def _hybrid_vsock(self, path: Path) -> HybridVsockTransport:
        """The way to the guest through the VMM's socket."""
        await self._host.register_guest(str(path))
        return HybridVsockTransport(self._host.connect_guest, path)

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract: what every shim may do is enough."""
        return frozenset()

    @property
    def transport(self) -> GuestTransport:
        """See the contract."""
        if self._transport is None:
            raise HypervisorError("there is no way to the guest: the virtual machine was not started")
        return self._transport

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return tuple(self._warnings)

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._children.tail(CONSOLE).text
