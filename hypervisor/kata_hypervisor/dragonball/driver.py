"""The driver of the in-process machine: the VMM is this process, virtiofsd the only other one.

prepare: devices, virtiofsd among them -> memory, KVM, kernel or template -> threads, which wait.
run:     see in_process.
end:     one task waits for the guest and for virtiofsd. When either ends, it ends the other, releases
         everything and keeps the `VmExit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kata_agent import reserved_ports
from kata_agent.transport import GuestTransport
from kata_agent.transports import VsockTransport
from kata_hypervisor.children import MOMENT, Children
from kata_hypervisor.contract import CRASHED, Capabilities, VmExit, VmmProcess, VmSpec, check_supported
from kata_hypervisor.dragonball import boot_source
from kata_hypervisor.dragonball.console import Console
from kata_hypervisor.dragonball.exits import Crash
from kata_hypervisor.dragonball.file_server import STDERR as FILE_SERVER_STDERR
from kata_hypervisor.dragonball.guest_devices import GuestDevices
from kata_hypervisor.dragonball.hotplug import Hotplug, HotplugHypervisor
from kata_hypervisor.dragonball.in_process import SWITCH_INTERVAL, InProcessVmm
from kata_hypervisor.dragonball.layout import MIB
from kata_hypervisor.dragonball.machine import MOST_VCPUS, Board, Machine
from kata_hypervisor.dragonball.own_process import NAME, OwnProcess
from kata_hypervisor.dragonball.processors import Processors
from kata_hypervisor.dragonball.template import Saving
from kata_hypervisor.dragonball.thread_result import ThreadResult
from kata_hypervisor.errors import HypervisorError, LaunchError, SnapshotError
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.kernel_line import is_partitioned, kernel_line
from kata_hypervisor.kvm.vcpus import accept_kicks
from kata_hypervisor.seccomp.seal import settle_libc
from kata_hypervisor.virtiofsd import NAME as FILE_SERVER
from kata_hypervisor.virtiofsd import FileServer

if TYPE_CHECKING:
    from kata_configuration.models.dragonball import Dragonball as DragonballTable

__all__ = ["Dragonball"]

# The last two: no exits to look for what is not there.
KERNEL_PARAMETERS = (
    *("tsc=reliable", "no_timer_check", "pci=off", "8250.nr_uarts=1"),
    reserved_ports.PARAMETER,  # its vsock is the kernel's, to which every user of the host connects
)


class Dragonball(InProcessVmm[str], HotplugHypervisor):
    """One virtual machine in this process.

    table: [hypervisor.dragonball] of the configuration. host: starts virtiofsd too.
    """

    capabilities = Capabilities(
        file_sharing=True,
        disks=True,
        block_hotplug=True,
        device_hotplug=True,
        taps=True,
        tap_descriptors=True,
        tap_hotplug=True,
        pause=True,
        snapshot=True,
        restore=True,
    )
    _noun = "the virtual machine"

    def __init__(self, table: DragonballTable, host: Host) -> None:
        super().__init__(host)
        self._table = table
        self._children = Children(host, None)
        self._file_server = FileServer(table, self._children, host)
        self._machine: Machine | None = None
        self._hotplug: Hotplug | None = None
        self._console: Console | None = None
        self._transport: VsockTransport | None = None
        self._making: asyncio.Task[None] | None = None
        self._files = contextlib.ExitStack()
        self._saving: Saving | None = None
        self._warnings: tuple[str, ...] = ()
        self._networked = False

    @property
    def _vcpus(self) -> Processors | None:
        return self._machine.processors if self._machine is not None else None

    def _describe(self, outcome: str) -> str:
        return outcome

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        balloon = ("balloon",) if self._table.reclaim_guest_freed_memory else ()
        network = ("vhost-net",) if self._networked else ()
        snapshot = ("snapshot",) if self._saving is not None else ()
        return frozenset({"vcpu", "block", "fs", "vhost-vsock", *balloon, *network, *snapshot})

    # -- prepare ---------------------------------------------------------------------------------------------

    async def prepare(self, spec: VmSpec) -> None:
        """See the contract."""
        if self._making is not None or self._requested:
            raise LaunchError(f"cannot start the virtual machine of {spec.sandbox_id}: it was used before")
        check_supported(NAME, self.capabilities, spec)
        if not 1 <= spec.vcpus <= MOST_VCPUS:
            raise LaunchError(f"cannot make a machine of {spec.vcpus} vCPUs: 1 to {MOST_VCPUS} are possible")
        # A task of its own: what it has opened while its caller is cancelled must be known, to be closed.
        self._making = asyncio.create_task(self._make(spec), name="virtual machine's making")
        try:
            await asyncio.wait({self._making})
            self._making.result()
            if self._requested:
                raise LaunchError("the virtual machine was stopped while it started")
        except BaseException:
            await self.stop()
            raise

    async def _make(self, spec: VmSpec) -> None:
        settle_libc()
        sys.setswitchinterval(SWITCH_INTERVAL)
        accept_kicks()
        worker = self._make_worker()
        console = await self._open_console()
        guest_end = self._guest_end()
        self._children.ours.callback(guest_end.close)
        self._networked = bool(spec.taps or spec.spare_taps)
        with contextlib.ExitStack() as unused:
            devices = GuestDevices(unused)
            await devices.open(self._table, self._host, self._file_server, spec)
            self._transport = devices.transport
            try:
                await worker.run(lambda: self._build(devices, console, guest_end, spec))
                self._warnings += await self._file_server.verify(self._host.patience)
            except (LaunchError, ProcessLookupError):
                await self._blame_file_server()
                raise
            unused.pop_all()
        assert self._machine is not None
        self._own = OwnProcess(self._machine.processors.end)
        self._end = asyncio.create_task(self._supervise(self._machine), name="virtual machine's end")

    async def _open_console(self) -> Console:
        self._console = await Console.open(logging.getLogger(f"{__name__}.console"))
        self._children.ours.push_async_callback(self._console.aclose)
        return self._console

    def _build(
        self, devices: GuestDevices, console: Console, guest_end: ThreadResult[str], spec: VmSpec
    ) -> None:
        """Put the machine together; blocks, on a thread of its own."""
        line = kernel_line(
            KERNEL_PARAMETERS,
            spec,
            quiet=not self._table.enable_debug,
            partitioned=is_partitioned(spec.image),
        )
        source, self._saving = boot_source.choose(
            spec, line, [*devices.present, *devices.spares], self._files
        )
        self._warnings = source.warnings
        board = source.prepare(Board(spec.vcpus, spec.memory_mib * MIB, self._table.enable_hugepages))
        self._machine = machine = Machine(board, console.write, guest_end.set)
        for device in devices.present:
            machine.add_device(device)
        self._hotplug = Hotplug(machine, self._host, devices.spares)
        source.fill(machine)

    async def _blame_file_server(self) -> None:
        """Say that virtiofsd has exited, where it has: that is why it gave no answer.

        Raises:
            LaunchError: it has.
        """
        if FILE_SERVER not in self._children:
            return
        with anyio.move_on_after(10 * MOMENT):
            status = await self._children[FILE_SERVER].wait()
            await self._children.drain_outputs()
            raise LaunchError(
                f"virtiofsd exited before the guest was ready: {self._describe_file_server(status)}",
                self._diagnostics(),
            )

    async def verify_confinement(self) -> None:
        """See the contract."""
        await super().verify_confinement()
        try:
            await self._file_server.check()
        except ProcessLookupError as error:
            raise HypervisorError("cannot verify the confinement: virtiofsd has exited") from error

    # -- while it runs ---------------------------------------------------------------------------------------

    def _slots(self, purpose: str) -> Hotplug:
        self._running_vcpus(purpose)
        assert self._hotplug is not None
        return self._hotplug

    async def snapshot(self, directory: Path) -> None:
        """See the contract."""
        vcpus, worker = self._running_vcpus("save")
        machine, saving = self._machine, self._saving
        if machine is None or saving is None or saving.directory != directory or not vcpus.held:
            raise SnapshotError(
                f"cannot save the virtual machine in {directory}: it must be paused, and made with `saved_to`"
            )
        await worker.run(lambda: saving.write(machine))

    @classmethod
    def describe_template(cls, spec: VmSpec) -> Mapping[str, str]:
        """See the contract."""
        return boot_source.describe(spec)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return self._warnings

    @property
    def transport(self) -> GuestTransport:
        """See the contract."""
        if self._transport is None:
            raise HypervisorError("cannot connect to the guest: the virtual machine was not started")
        return self._transport

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        own = (VmmProcess("vmm", self._own),) if self._own is not None else ()
        if FILE_SERVER not in self._children:
            return own
        return (*own, VmmProcess(FILE_SERVER, self._children[FILE_SERVER]))

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._console.text if self._console is not None else ""

    # -- the end ---------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        if self._making is not None and not self._making.done():
            await self._children.kill()
            await asyncio.wait({self._making})
        if self._machine is not None:
            self._machine.processors.end("it was stopped")
        if self._end is not None:
            await asyncio.wait({self._end})
        else:
            await self._release()

    async def _supervise(self, machine: Machine) -> VmExit:
        """Wait for the first end, then end everything."""
        assert self._guest_ended is not None
        own = ExitStatus(code=0)
        served = FILE_SERVER in self._children
        daemon = asyncio.ensure_future(self._children[FILE_SERVER].wait()) if served else None
        try:
            await asyncio.wait(
                {self._guest_ended, *({daemon} if daemon else ())}, return_when=asyncio.FIRST_COMPLETED
            )
            requested = self._requested
            first = FILE_SERVER if not self._guest_ended.done() else NAME
            machine.processors.end("virtiofsd exited")
            if isinstance(machine.processors.outcome, Crash):
                own = ExitStatus(signal=CRASHED)
            status = daemon.result() if first == FILE_SERVER and daemon is not None else own
        finally:
            await self._release()
            if self._own is not None:
                self._own.end(own)
        reason = f"the guest ended: {machine.processors.outcome}"
        if first == FILE_SERVER:
            reason = f"virtiofsd exited: {self._describe_file_server(status)}"
        return VmExit(reason, first, status, requested, self._diagnostics())

    async def _release(self) -> None:
        """End virtiofsd and everything of ours; blocks the event loop for nothing."""
        machine = self._machine
        released = await self._release_machine(machine.close if machine is not None else lambda: None)
        await self._children.kill()
        await self._children.wait()
        await self._children.drain_outputs()
        if not released:
            return
        if self._console is not None:
            await self._console.finish(MOMENT)
        self._files.close()
        await self._children.ours.aclose()

    def _describe_file_server(self, status: ExitStatus) -> str:
        """How it exited, and why by the last line that it wrote."""
        last = self._children.tail(FILE_SERVER_STDERR).last_line
        return f"{status}: {last}" if last else f"{status}"

    def _diagnostics(self) -> dict[str, str]:
        console = {"console": self.console_tail} if self.console_tail else {}
        return {**console, **self._children.outputs}
