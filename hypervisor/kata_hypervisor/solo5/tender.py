"""Solo5's own tenders, solo5-hvt and solo5-spt: one process each, which filters itself, or is filtered by us.

Prepare: file -> version of the tender -> a process that waits at a gate to become the tender.
Run:     the gate opens; the tender loads the unikernel, puts on its filter and runs it; then it is verified.
End:     see `ProcessLifecycle`.

A tender cannot be started without running its guest, and puts its filter on right before that: so what the
kernel reports of it is read right after, not before. A solo5-hvt before 0.11 has no filter of its own: what
waits at the gate is under ours, and is verified there. Source: Solo5's tenders/hvt/hvt_main.c and
tenders/spt/spt_main.c.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

import anyio

from kata_hypervisor.children import Children
from kata_hypervisor.contract import (
    NetTap,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    check_unikernel,
)
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
    SealError,
    UnikernelError,
)
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import ProcessLifecycle
from kata_hypervisor.privileges import KVM, TUN, Privileges, readable
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters
from kata_hypervisor.solo5.attachment import AttachedDevice, attach_devices, check_room, read_file
from kata_hypervisor.solo5.info import SOLO5_HVT, SOLO5_SPT
from kata_hypervisor.solo5.unikernel_file import HVT, HVT_VERSION, SPT, SPT_VERSION, check_target

if TYPE_CHECKING:
    from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt

STDOUT, GATE, FILE, BLOCK = 1, 3, 4, 5

UNIKERNEL, BLOCK_DEVICE = f"/proc/self/fd/{FILE}", f"/proc/self/fd/{BLOCK}"
"""What is open in the tender, by its descriptor."""

OWN_FILTER_SINCE = (0, 11)
"""It is also the first with a network here: our filter, for what has none, lets a tender open no tap; and
before 0.10 it tells its guest an MTU of 1500, whatever the tap's is."""

VERSION = re.compile(r"tender, version v?(\d+)\.(\d+)")

FILTER_SIZE = 4096 * 8
"""How large a tender's own filter may be: the kernel's BPF_MAXINSNS, of 8 bytes each (linux/bpf_common.h,
linux/filter.h). It writes it to a memfd before it loads it (tenders/spt/spt_core.c and
tenders/hvt/hvt_seccomp_linux.c of Solo5)."""

MUSL_PATHS = Path("/etc/ld-musl-x86_64.path")
"""Where musl's loader looks for libraries; what glibc's needs every child is shown."""


def command_line(tender: str, spec: UnikernelSpec, devices: Mapping[str, AttachedDevice]) -> list[str]:
    """The tender's argv. It opens a tap by its name: of one that it inherits it does not learn the MTU."""
    argv = [tender, f"--mem={spec.memory_mib}"]
    for name, device in devices.items():
        if device.kind == "block":
            argv.append(f"--block:{name}={BLOCK_DEVICE}")
        elif spec.net is not None:
            argv += [f"--net:{name}={spec.net.name}", f"--net-mac:{name}={spec.net.mac.hex(':')}"]
    return [*argv, "--", UNIKERNEL, *([spec.command_line] if spec.command_line else [])]


class Tender(ProcessLifecycle, UnikernelVmm):
    """One unikernel in a tender's process. table: the tender's, of the configuration. host: starts it."""

    target: ClassVar[tuple[str, int]]
    devices: ClassVar[tuple[Path, ...]] = ()
    capabilities = UnikernelCapabilities(tap_names=True, tap_header=False)
    _stop_budget = 0.0  # nobody can ask it to exit

    def __init__(self, table: Solo5Hvt | Solo5Spt, host: Host) -> None:
        self._path = str(table.path)
        self._host = host
        self._inherited = inherited_filters()
        self._children = Children(host, logging.getLogger(__name__))
        self._gate: IO[bytes] | None = None
        self._warnings: list[str] = []
        self._running = False
        self._confined = True
        self._ours_filters = False

    # -- start ---------------------------------------------------------------------------------------------

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        check_unikernel(self.vmm, self.capabilities, spec)
        unikernel = read_file(spec)
        try:
            check_target(unikernel, *self.target, self.vmm)
            devices = attach_devices(unikernel.devices, spec)
            check_room(unikernel, spec.memory_mib << 20)
        except UnikernelError as error:
            raise UnikernelError(f"cannot run the unikernel {spec.name}: {error}") from error
        await self._launch(
            f"unikernel of {spec.sandbox_id}", lambda: self._spawn(spec, devices), self._verify_filter
        )

    def _check_version(self, version: tuple[int, int], *, unconfined: bool) -> tuple[str, ...]:
        """Decide what confines a tender of this version; return what the operator should know."""
        return ()

    async def _probe(self) -> tuple[int, int]:
        """Ask the tender for its version."""
        probe = Children(self._host, None)
        try:
            child = await probe.spawn(self.vmm, [self._path, "--version"], {}, privileges=self._privileges())
            with anyio.move_on_after(self._host.patience) as patience:
                await child.wait()
            await probe.kill()
            end = await child.wait()
            await probe.drain_outputs()
            text = probe.tail(f"{self.vmm} stderr").text
        finally:
            await probe.ours.aclose()
        found = VERSION.search(text)
        if found is None:
            how = f"in {self._host.patience:g} s" if patience.cancelled_caught else f"({end})"
            raise HostUnfitError(
                f"{self._path} --version does not print a version of {self.vmm} {how}: {text[:200]!r}; "
                f"correct path in {self.section}"
            )
        return int(found[1]), int(found[2])

    async def _spawn(self, spec: UnikernelSpec, devices: Mapping[str, AttachedDevice]) -> None:
        version = await self._probe()
        if spec.net is not None:
            self._check_network(version, spec.net)
        self._warnings += self._check_version(version, unconfined=spec.unconfined)
        argv = command_line(self._path, spec, devices)
        disks = [device.descriptor for device in devices.values() if device.kind == "block"]
        seccomp = None
        if self._ours_filters:
            from kata_hypervisor.solo5 import allowlist

            seccomp = allowlist.build(self._path, UNIKERNEL, [BLOCK_DEVICE] if disks else [])
        with contextlib.ExitStack() as theirs:
            gate, ours = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, gate)
            self._gate = self._children.ours.enter_context(os.fdopen(ours, "wb", buffering=0))
            os.set_blocking(spec.output, True)  # a tender takes "try again" for a fault
            fds = {STDOUT: spec.output, GATE: gate, FILE: readable(spec.file, theirs)}
            fds.update((BLOCK, disk) for disk in disks)
            own_filter = 0 if self._ours_filters else FILTER_SIZE
            size = max(own_filter, *(os.fstat(disk).st_size for disk in disks), 0)
            written = (BLOCK,) if disks else ()
            privileges = self._privileges(written, network=spec.net is not None, file_size=size)
            await self._children.spawn(self.vmm, argv, fds, gate=GATE, seccomp=seccomp, privileges=privileges)

    def _check_network(self, version: tuple[int, int], net: NetTap) -> None:
        """Refuse a network that a tender of this version cannot give its guest."""
        if version < OWN_FILTER_SINCE:
            shown, wanted = (".".join(map(str, one)) for one in (version, OWN_FILTER_SINCE))
            raise NotSupportedError(
                f"{self.vmm} {shown} gets no network device: install {wanted} or newer at {self._path}"
            )
        if net.name.startswith("@"):
            raise NotSupportedError(
                f"{self.vmm} takes the tap {net.name!r} for the number of a descriptor: give it another name"
            )

    def _privileges(
        self, written: tuple[int, ...] = (), *, network: bool = False, file_size: int = 0
    ) -> Privileges:
        """What the tender is shown: it opens its unikernel and its block device again, through /proc.

        network: whether it opens a tap, which is its user's, in the pod's network namespace. file_size: of
        the largest file that it writes to: its filter, and the block device, where that is a file.
        """
        return Privileges(
            data=(MUSL_PATHS,),
            devices=(*self.devices, *((TUN,) if network else ())),
            proc=True,
            written=written,
            network=network,
            open_files=64,
            file_size=file_size,
        )

    async def run(self) -> None:
        """See the contract."""
        if self._end is None or self._gate is None or self._running or self._requested:
            raise LaunchError("cannot run the unikernel: it is not prepared, or runs already")
        self._running = True
        try:
            if not self._gate.closed:  # else it has exited: its end says why
                with contextlib.suppress(BrokenPipeError):
                    self._gate.write(b"\n")
                self._gate.close()
            await self._verify_soon()
        except BaseException:
            await self.stop()
            raise

    # -- confinement ---------------------------------------------------------------------------------------

    async def _verify_filter(self) -> None:
        """Verify that our filter, if it is ours, is on what waits at the gate, and is effective."""
        if not self._ours_filters:
            return
        if (breach := await self._breach()) is not None:
            raise ConfinementError(breach)
        child = self._children[self.vmm]
        try:
            effective = await self._host.filters_effective(child, child.pid, self._inherited)
        except SealError as error:
            self._warnings.append(
                f"the filter of {self.vmm} is in force, and could not be read back: {error}"
            )
        except ProcessLookupError:
            return  # its end says why
        else:
            if not effective:
                raise ConfinementError(
                    f"the seccomp filter of {self.vmm} allows each system call that was tried; "
                    f"{self.section} requires one that refuses them"
                )

    async def _verify_soon(self) -> None:
        """Wait until the tender has put on its filter; one that has exited by then has no threads."""
        deadline = anyio.current_time() + self._host.patience
        while (breach := await self._breach()) is not None:
            if anyio.current_time() > deadline:
                raise ConfinementError(breach)
            await anyio.sleep(0.005)

    async def _breach(self) -> str | None:
        child = self._children[self.vmm]
        if child.exited is not None:
            return None
        try:
            threads = await self._host.confinement(child)
        except ProcessLookupError:
            return None
        return find_breach(
            threads, self._confined, self._inherited, process=self.vmm, required_by=self.section
        )

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("cannot verify the confinement of the unikernel: it is not running")
        if (breach := await self._breach()) is not None:
            raise ConfinementError(breach)

    # -- end -----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """A tender does nothing after its end."""

    def _conclude(self, exited: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        status, stderr = exited[self.vmm], self._children.tail(f"{self.vmm} stderr")
        reason = f"{self.vmm} exited: {status}" + (f": {stderr.last_line}" if stderr.last_line else "")
        if violation := self._children[self.vmm].violation:
            reason = violation
        elif status == ExitStatus(signal=signal.SIGSYS):
            reason = (
                f"{self.vmm} made a system call that its seccomp filter refuses, and was killed by SIGSYS"
            )
        return VmExit(reason, self.vmm, status, requested, self._children.outputs)

    async def _quit(self) -> bool:
        """A tender takes no requests."""
        return False

    async def pause(self) -> None:
        """See the contract."""
        await self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """See the contract."""
        await self._signal(signal.SIGCONT)

    async def _signal(self, number: int) -> None:
        if not self._running or self._children[self.vmm].exited is not None:
            raise HypervisorError("the unikernel is not running")
        await self._children[self.vmm].kill(number)

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract: the tender is another process."""
        return frozenset()

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return tuple(self._warnings)

    @property
    def console_tail(self) -> str:
        """See the contract: what the unikernel prints goes past us."""
        return ""


class Hvt(Tender):
    """solo5-hvt, on KVM. Since version 0.11 it filters itself, and nothing is stacked on that; older ones get
    our filter before they begin."""

    info = SOLO5_HVT
    devices = (KVM,)
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

    info = SOLO5_SPT
    target = (SPT, SPT_VERSION)
