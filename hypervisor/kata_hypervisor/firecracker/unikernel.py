"""A unikernel in Firecracker: the driver's own machine, without an agent, from descriptors.

Firecracker is confined, verified, started and stopped as with any guest: see `FirecrackerDriver`. Its
standard output is the unikernel's, so what it logs itself goes to its standard error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kata_configuration.plain_table import overridden
from kata_hypervisor import host_checks, sockets
from kata_hypervisor.bootable import Protocol, check_bootable, check_room
from kata_hypervisor.contract import (
    CRASHED,
    Disk,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    VmmProcess,
    VmSpec,
    check_unikernel,
)
from kata_hypervisor.errors import ConfinementError, LaunchError, NotSupportedError
from kata_hypervisor.firecracker import machine
from kata_hypervisor.firecracker.driver import API_SOCKET, FirecrackerDriver
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.privileges import KVM, NULL, TUN, Privileges, readable
from kata_hypervisor.rest import RestClient, Step
from kata_hypervisor.vmm_paths import RUN_DIRECTORY

if TYPE_CHECKING:
    from kata_configuration.models.firecracker import Firecracker as Table

__all__ = ["FirecrackerUnikernel"]

FIRECRACKER = "firecracker"
STARTS = (Protocol.LINUX, Protocol.PVH, Protocol.ELF_64)
USUAL_MTU = 1500
"""What a guest takes that is told none."""
CRASH = re.compile(r":fc_vcpu \d+\] ((?:Unexpected exit reason on|Failure during|Received KVM_EXIT_).*)")
STDOUT, STDERR, FILE, INITRD, BLOCK = 1, 2, 4, 5, 6


def own_path(number: int) -> Path:
    """A descriptor of Firecracker's as a path that it can open."""
    return Path(f"/proc/self/fd/{number}")


class FirecrackerUnikernel(UnikernelVmm):
    """One unikernel in Firecracker.

    table: [hypervisor.firecracker] of the configuration. host: starts the process. start_budget: seconds
    that Firecracker gets to be prepared, and to run, the host's patience without.

    Make it, and await `prepare`, before the caller seals itself.
    """

    capabilities = UnikernelCapabilities(initrd=True, tap_names=True, exit_status=False)

    def __init__(self, table: Table, host: Host, *, start_budget: float | None = None) -> None:
        self._table = table
        self._host = host
        self._machine = Machine(table, host, start_budget=start_budget)

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        check_unikernel(FIRECRACKER, self.capabilities, spec)
        if self._table.jailer_path is not None:
            raise NotSupportedError(
                "firecracker's jailer passes no open files on, and a unikernel's files are nothing else: "
                "unset jailer_path in [hypervisor.firecracker]"
            )
        check_bootable(spec.file, spec.name, FIRECRACKER, STARTS)
        check_room(spec)
        if self._table.honor_unconfined and spec.unconfined:
            self._machine.leave_unconfined()
        self._machine.unikernel = spec
        await self._machine.prepare(
            VmSpec(
                spec.sandbox_id,
                spec.directory,
                self._table.default_vcpus,
                spec.memory_mib,
                own_path(FILE),
                initrd=own_path(INITRD) if spec.initrd is not None else None,
            )
        )

    async def run(self) -> None:
        """See the contract."""
        await self._machine.run()

    async def stop(self) -> None:
        """See the contract."""
        await self._machine.stop()

    async def wait(self) -> VmExit:
        """See the contract."""
        return await self._machine.wait()

    async def pause(self) -> None:
        """See the contract."""
        await self._machine.pause()

    async def resume(self) -> None:
        """See the contract."""
        await self._machine.resume()

    async def verify_confinement(self) -> None:
        """See the contract."""
        await self._machine.verify_confinement()

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        return self._machine.seal_features

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        return self._machine.processes

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return self._machine.warnings

    @property
    def console_tail(self) -> str:
        """See the contract: what the unikernel prints goes past us."""
        return ""


class Machine(FirecrackerDriver):
    """Firecracker's machine with a unikernel in it. unikernel: set before `prepare`."""

    unikernel: UnikernelSpec

    def leave_unconfined(self) -> None:
        """Before `prepare`: put no filter on it, because its container came without one."""
        self._excuse = "honor_unconfined = true"
        self._table = overridden(self._table, disable_seccomp=True, confined=False)
        self._confined = False

    def _check_host(self, spec: VmSpec) -> list[str]:
        host_checks.check_kvm(host_checks.KVM, self.info.name)
        host_checks.check_executable(
            self.vmm, self._table.path, f"install it, or correct path in {self.section}"
        )
        return host_checks.check_guest_memory(
            spec.memory_mib, self.section, huge=self._table.enable_hugepages
        )

    async def _spawn(self, spec: VmSpec) -> None:
        api = sockets.check_path(spec.directory / RUN_DIRECTORY / API_SOCKET, "firecracker's API socket")
        self._api = api
        argv = [*machine.command_line(self._table, spec, api), "--log-path", str(own_path(STDERR))]
        with contextlib.ExitStack() as theirs:
            fds = descriptors(self.unikernel)
            for number in read_only(self.unikernel):
                fds[number] = readable(fds[number], theirs)
            await self._children.spawn(self.vmm, argv, fds, privileges=shown(self.unikernel))

    async def _boot(self, client: RestClient) -> None:
        """Ask for nothing more than the start: who asks a Firecracker that ends may have it hang for ever."""
        self._running = True  # it may end by itself before Firecracker has answered
        await client.request("PUT", "/actions", {"action_type": "InstanceStart"})

    async def run(self) -> None:
        """See the contract; one that has exited by then is no failure: `wait` returns how."""
        try:
            await super().run()
        except LaunchError:
            if not self._running:
                raise
            end = await self.wait()
            if end.requested or (end.status.code is None and self._own_reason() is None):
                raise

    async def _verify_confinement(self) -> None:
        """When it runs, wait for its main thread, which filters itself after it has answered."""
        # Half of what the stage has: at its end the breach is named, and not the time.
        deadline = anyio.current_time() + (self._start_budget / 2 if self._running else 0)
        while True:
            try:
                await super()._verify_confinement()
            except ConfinementError:
                if anyio.current_time() >= deadline:
                    raise
                await anyio.sleep(0.005)
            else:
                return

    def _own_reason(self) -> str | None:
        """What it crashed with; Firecracker ends with status 1 then, or 0 where that came too fast for it."""
        found = CRASH.search(self._children.tail(f"{self.vmm} stderr").text)
        return f"the unikernel crashed: {found[1]}" if found else None

    async def _supervise(self) -> VmExit:
        end = await super()._supervise()
        if end.requested or self._own_reason() is None:
            return end
        return replace(end, status=ExitStatus(signal=CRASHED))

    def _steps(self, spec: VmSpec) -> Iterator[Step]:
        for purpose, path, body in requests(self._table, spec, self.unikernel):
            yield Step(purpose, "PUT", path, body)


def descriptors(spec: UnikernelSpec) -> dict[int, int]:
    """What Firecracker inherits for the unikernel, by its numbers there."""
    given = {STDOUT: spec.output, FILE: spec.file}
    if spec.initrd is not None:
        given[INITRD] = spec.initrd
    if spec.block is not None:
        given[BLOCK] = spec.block.descriptor
    return given


def read_only(spec: UnikernelSpec) -> list[int]:
    """Which of them it opens again to read."""
    block = spec.block is not None and spec.block.read_only
    return [FILE, *([INITRD] if spec.initrd is not None else ()), *([BLOCK] if block else ())]


def shown(spec: UnikernelSpec) -> Privileges:
    """What Firecracker is shown of the host: devices; the rest is its descriptors."""
    block = (BLOCK,) if spec.block is not None and not spec.block.read_only else ()
    devices = (NULL, KVM, *((TUN,) if spec.net is not None else ()))
    return Privileges(
        devices=devices,
        proc=True,
        file_size=None,
        run_directory=spec.directory / RUN_DIRECTORY,
        written=(STDERR, *block),
    )


def requests(table: Table, spec: VmSpec, unikernel: UnikernelSpec) -> Iterator[machine.Request]:
    """Describe the machine. Firecracker adds parameters for its devices to the command line."""
    boot = {"kernel_image_path": str(spec.kernel), "boot_args": unikernel.command_line}
    if spec.initrd is not None:
        boot["initrd_path"] = str(spec.initrd)
    yield "naming the kernel", "/boot-source", boot
    yield from machine.size(table, spec)
    if unikernel.block is not None:
        disk = Disk("block", own_path(BLOCK), read_only=unikernel.block.read_only)
        yield "adding the block device", "/drives/block", machine.drive(table, disk, disk.path)
    if (net := unikernel.net) is not None:
        body: machine.Json = {"iface_id": "net", "host_dev_name": net.name, "guest_mac": net.mac.hex(":")}
        if net.mtu != USUAL_MTU:
            body["mtu"] = net.mtu  # which versions before 1.17 refuse: nobody else could tell the guest
        yield "adding the network device", "/network-interfaces/net", body
