"""Solo5's own tenders, solo5-hvt and solo5-spt: one process each, which filters itself, or is filtered by us.

prepare: file -> version of the tender -> a process that waits at a gate to become the tender.
run:     the gate opens; the tender loads the unikernel, puts on its filter and runs it; then it is verified.
end:     the process's end.

A tender cannot be started without running its guest, and puts its filter on right before that: so what the
kernel reports of it is read right after, not before. A solo5-hvt before 0.11 has no filter of its own: what
waits at the gate is under ours, and is verified there. Source: Solo5's tenders/hvt/hvt_main.c and
tenders/spt/spt_main.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import Mapping
from typing import ClassVar

import anyio

from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor.contract import (
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    VmmProcess,
    check_unikernel,
)
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    SealError,
    UnikernelError,
)
from kata_hypervisor.host import Child, ExitStatus, Host
from kata_hypervisor.lifecycle import VmLifecycle
from kata_hypervisor.output_tail import Follower, follow
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters
from kata_hypervisor.solo5.attachment import AttachedDevice, attach_devices, check_room, read_file
from kata_hypervisor.solo5.unikernel_file import HVT, HVT_VERSION, SPT, SPT_VERSION, check_target

STDOUT, STDERR, GATE, FILE, BLOCK = 1, 2, 3, 4, 5

UNIKERNEL, BLOCK_DEVICE = f"/proc/self/fd/{FILE}", f"/proc/self/fd/{BLOCK}"
"""What is open in the tender, by its descriptor."""

OWN_FILTER_SINCE = (0, 11)
VERSION = re.compile(r"tender, version v?(\d+)\.(\d+)")

PROBE_BUDGET = 5.0
PROOF_BUDGET = 5.0
MOMENT = 0.1


def command_line(tender: str, spec: UnikernelSpec, devices: Mapping[str, AttachedDevice]) -> list[str]:
    """The tender's argv."""
    argv = [tender, f"--mem={spec.memory_mib}"]
    argv += [f"--block:{name}={BLOCK_DEVICE}" for name in devices]
    return [*argv, "--", UNIKERNEL, *([spec.command_line] if spec.command_line else [])]


class Tender(VmLifecycle, UnikernelVmm):
    """One unikernel in a tender's process. table: the tender's, of the configuration. host: starts it."""

    name: ClassVar[str]
    target: ClassVar[tuple[str, int]]
    capabilities = UnikernelCapabilities()

    def __init__(self, table: Solo5Hvt | Solo5Spt, host: Host) -> None:
        self._path = str(table.path)
        self._log = logging.getLogger(f"{__name__}.stderr").debug if table.enable_debug else None
        self._host = host
        self._inherited = inherited_filters()
        self._ours = contextlib.AsyncExitStack()
        self._gate = -1
        self._child: Child | None = None
        self._stderr: Follower | None = None
        self._warnings: tuple[str, ...] = ()
        self._used = self._running = False
        self._confined = True
        self._ours_filters = False

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        if self._used or self._requested:
            raise LaunchError(f"cannot start the unikernel of {spec.sandbox_id}: its monitor was used before")
        self._used = True
        check_unikernel(self.name, self.capabilities, spec)
        unikernel = read_file(spec)
        try:
            check_target(unikernel, *self.target, self.name)
            devices = attach_devices(unikernel.devices, spec)
            check_room(unikernel, spec.memory_mib << 20)
        except UnikernelError as error:
            raise UnikernelError(f"cannot run the unikernel {spec.name}: {error}") from error
        try:
            self._warnings = self._check_version(await self._probe(), unconfined=spec.unconfined)
            await self._spawn(spec, devices)
            if self._ours_filters:
                await self._verify_filter()
        except BaseException:
            await self.stop()
            raise

    def _check_version(self, version: tuple[int, int], *, unconfined: bool) -> tuple[str, ...]:
        """Decide what confines a tender of this version; return what the operator should know."""
        return ()

    async def _probe(self) -> tuple[int, int]:
        """Ask the tender for its version."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        output = await follow(os.fdopen(reader, "rb", buffering=0))
        try:
            try:
                child = await self._host.spawn(self.name, [self._path, "--version"], fds={STDERR: writer})
            finally:
                os.close(writer)
            with anyio.move_on_after(PROBE_BUDGET) as patience:
                await child.wait()
                await output.ended.wait()
            await child.kill()
            end = await child.wait()
            text = output.tail.text
        finally:
            await output.aclose()
        found = VERSION.search(text)
        if found is None:
            how = f"in {PROBE_BUDGET:g} s" if patience.cancelled_caught else f"({end})"
            raise HostUnfitError(
                f"{self._path} --version does not print a version of {self.name} {how}: {text[:200]!r}; "
                f"correct path in [hypervisor.{self.name}]"
            )
        return int(found[1]), int(found[2])

    async def _spawn(self, spec: UnikernelSpec, devices: Mapping[str, AttachedDevice]) -> None:
        argv = command_line(self._path, spec, devices)
        seccomp = None
        if self._ours_filters:
            from kata_hypervisor.solo5 import allowlist

            seccomp = allowlist.build(self._path, UNIKERNEL, [BLOCK_DEVICE] if devices else [])
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._stderr = await follow(os.fdopen(reader, "rb", buffering=0), self._log)
            self._ours.push_async_callback(self._stderr.aclose)
            os.set_blocking(spec.output, True)  # a tender takes "try again" for a fault
            fds = {STDOUT: spec.output, STDERR: writer, GATE: gate, FILE: spec.file}
            fds.update((BLOCK, device.descriptor) for device in devices.values())
            self._child = await self._host.spawn(self.name, argv, fds=fds, gate=GATE, seccomp=seccomp)
        finally:
            os.close(gate)
            os.close(writer)
        self._end = asyncio.create_task(self._supervise(self._child), name="unikernel's end")

    async def run(self) -> None:
        """See the contract."""
        if self._gate < 0 or self._running:
            raise LaunchError("cannot run the unikernel: it is not prepared, or runs already")
        try:
            with contextlib.suppress(BrokenPipeError):  # it has exited: its end says why
                os.write(self._gate, b"\n")
            self._close_gate()
            self._running = True
            await self._verify_soon()
        except BaseException:
            await self.stop()
            raise

    async def _verify_filter(self) -> None:
        """Verify that our filter is on what waits at the gate, and is effective."""
        assert self._child is not None
        if (breach := await self._breach()) is not None:
            raise ConfinementError(breach)
        try:
            effective = await self._host.filters_effective(self._child, self._child.pid, self._inherited)
        except SealError as error:
            self._warnings += (f"the filter of {self.name} is in force, and could not be read back: {error}",)
        except ProcessLookupError:
            return  # its end says why
        else:
            if not effective:
                raise ConfinementError(
                    f"the seccomp filter of {self.name} allows each system call that was tried; "
                    f"[hypervisor.{self.name}] requires one that refuses them"
                )

    async def _verify_soon(self) -> None:
        """Wait until the tender has put on its filter; one that has exited by then has no threads."""
        deadline = anyio.current_time() + PROOF_BUDGET
        while (breach := await self._breach()) is not None:
            if anyio.current_time() > deadline:
                raise ConfinementError(breach)
            await anyio.sleep(0.005)

    async def _breach(self) -> str | None:
        assert self._child is not None
        if self._child.exited is not None:
            return None
        try:
            threads = await self._host.confinement(self._child)
            table = f"[hypervisor.{self.name}]"
            return find_breach(threads, self._confined, self._inherited, process=self.name, required_by=table)
        except ProcessLookupError:
            return None

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running or self._child is None:
            raise HypervisorError("cannot verify the confinement of the unikernel: it is not running")
        if (breach := await self._breach()) is not None:
            raise ConfinementError(breach)

    async def _stop(self) -> None:
        self._close_gate()
        if self._child is not None:
            await self._child.kill()
        if self._end is not None:
            await asyncio.wait({self._end})
        await self._ours.aclose()

    def _close_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    async def _supervise(self, child: Child) -> VmExit:
        status = await child.wait()
        assert self._stderr is not None
        with anyio.move_on_after(MOMENT):
            await self._stderr.ended.wait()
        stderr = self._stderr.tail
        reason = f"{self.name} exited: {status}" + (f": {stderr.last_line}" if stderr.last_line else "")
        if child.violation:
            reason = child.violation
        elif status == ExitStatus(signal=signal.SIGSYS):
            reason = (
                f"{self.name} made a system call that its seccomp filter refuses, and was killed by SIGSYS"
            )
        diagnostics = {f"{self.name} stderr": stderr.text} if stderr.text else {}
        return VmExit(reason, self.name, status, self._requested, diagnostics)

    async def pause(self) -> None:
        """See the contract."""
        await self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """See the contract."""
        await self._signal(signal.SIGCONT)

    async def _signal(self, number: int) -> None:
        if self._child is None or not self._running or self._child.exited is not None:
            raise HypervisorError("the unikernel is not running")
        await self._child.kill(number)

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract: the tender is another process."""
        return frozenset()

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        return (VmmProcess("vmm", self._child),) if self._child is not None else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return self._warnings

    @property
    def console_tail(self) -> str:
        """See the contract: what the unikernel prints goes past us."""
        return ""


class Hvt(Tender):
    """solo5-hvt, on KVM. Since version 0.11 it filters itself, and nothing is stacked on that; older ones get
    our filter before they begin."""

    name = "solo5-hvt"
    target = (HVT, HVT_VERSION)

    def __init__(self, table: Solo5Hvt, host: Host) -> None:
        super().__init__(table, host)
        self._disabled = table.disable_seccomp
        self._honors = table.honor_unconfined

    def _check_version(self, version: tuple[int, int], *, unconfined: bool) -> tuple[str, ...]:
        shown = ".".join(map(str, version))
        if version >= OWN_FILTER_SINCE:
            if self._disabled:
                return (f"disable_seccomp changes nothing: solo5-hvt {shown} filters itself, always",)
            return ()
        if self._disabled or (self._honors and unconfined):
            self._confined = False
            why = "disable_seccomp" if self._disabled else "honor_unconfined, and the container is unconfined"
            return (f"solo5-hvt {shown} runs without a seccomp filter: {why}",)
        self._ours_filters = True
        return ()


class Spt(Tender):
    """solo5-spt, without KVM; it always filters itself."""

    name = "solo5-spt"
    target = (SPT, SPT_VERSION)
