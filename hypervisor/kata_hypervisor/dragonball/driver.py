"""The driver of the in-process machine: the VMM is this process, virtiofsd the only other one.

prepare: virtiofsd -> memory, KVM, devices, kernel or template -> threads, which wait.
The caller seals the process: nothing is opened, mapped or started from then on.
run:     every vCPU's thread puts on its own filter -> proof -> the guest's first instruction.
end:     one task watches the guest and virtiofsd. When either ends, it ends the other, releases everything
         and keeps the `VmExit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio

from kata_agent.transport import GuestTransport
from kata_agent.transports import VsockTransport
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor import vhost_vsock
from kata_hypervisor.contract import (
    Capabilities,
    VmExit,
    VmmProcess,
    VmSpec,
    check_supported,
)
from kata_hypervisor.dragonball.boot_source import choose, describe
from kata_hypervisor.dragonball.command import kernel_command_line
from kata_hypervisor.dragonball.console import Console
from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.file_server import NAME as FILE_SERVER
from kata_hypervisor.dragonball.file_server import FileServer
from kata_hypervisor.dragonball.host_files import (
    blank_disk,
    open_disk,
    open_entropy,
    open_network,
    open_spares,
)
from kata_hypervisor.dragonball.hotplug import Hotplug, TakesPlugs
from kata_hypervisor.dragonball.layout import MIB
from kata_hypervisor.dragonball.machine import MOST_VCPUS, Board, Machine
from kata_hypervisor.dragonball.own_process import NAME, OwnProcess
from kata_hypervisor.dragonball.processors import KICK
from kata_hypervisor.dragonball.template import Saving
from kata_hypervisor.dragonball.thread_result import ThreadResult
from kata_hypervisor.dragonball.virtio.balloon import Balloon
from kata_hypervisor.dragonball.virtio.block import Block
from kata_hypervisor.dragonball.virtio.device import Device
from kata_hypervisor.dragonball.virtio.filesystem import FileSystem
from kata_hypervisor.dragonball.virtio.network import Network
from kata_hypervisor.dragonball.virtio.vsock import Socket
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    SnapshotError,
)
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.lifecycle import VmLifecycle
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters
from kata_hypervisor.seccomp.seal import settle_libc

__all__ = ["Dragonball"]

SWITCH_INTERVAL = 0.0005
"""Seconds for which one thread may keep the others of this process waiting, vCPUs with an exit among them."""

MOMENT = 0.1  # seconds in which last words arrive


class Dragonball(VmLifecycle, TakesPlugs):
    """One virtual machine in this process.

    table: [hypervisor.dragonball] of the configuration. host: starts virtiofsd, and reads what the kernel
    says of this process's threads, which a sealed process cannot.

    Make it, and await `prepare`, in the main thread and before the caller seals itself.
    """

    capabilities = Capabilities(
        file_sharing=True,
        disks=True,
        block_hotplug=True,
        taps=True,
        tap_descriptors=True,
        tap_hotplug=True,
        pause=True,
        snapshot=True,
        restore=True,
    )

    def __init__(self, table: DragonballTable, host: Host) -> None:
        self._table = table
        self._host = host
        self._inherited = inherited_filters()
        self._seal: Callable[[], object] | None = None
        self._ours = contextlib.AsyncExitStack()
        self._worker: Control | None = None
        self._machine: Machine | None = None
        self._hotplug: Hotplug | None = None
        self._own: OwnProcess | None = None
        self._daemon = FileServer(table, host, self._ours)
        self._console: Console | None = None
        self._guest_ended: asyncio.Future[str] | None = None
        self._transport: VsockTransport | None = None
        self._making: asyncio.Task[None] | None = None
        self._files = contextlib.ExitStack()
        self._saving: Saving | None = None
        self._warnings: tuple[str, ...] = ()
        self._running = self._networked = False

    def seal_vcpus(self, install: Callable[[], object]) -> None:
        """See the contract."""
        self._seal = install

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract."""
        balloon = ("balloon",) if self._table.reclaim_guest_freed_memory else ()
        network = ("vhost-net",) if self._networked else ()
        snapshot = ("snapshot",) if self._saving is not None else ()
        return frozenset({"vcpu", "block", "fs", "vhost-vsock", *balloon, *network, *snapshot})

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
        signal.signal(KICK, _nothing)
        self._worker = Control("machine")
        self._console = await self._open_console()
        guest_ended = self._watch_guest()
        with contextlib.ExitStack() as unused:
            devices = await self._open_devices(spec, unused)
            spares = open_spares(spec, unused)
            try:
                await self._worker.run(lambda: self._build(devices, spares, guest_ended, spec))
            except LaunchError:
                await self._blame_virtiofsd()
                raise
            unused.pop_all()
        assert self._machine is not None
        self._own = OwnProcess(self._machine.processors.end)
        self._end = asyncio.create_task(self._supervise(self._machine), name="virtual machine's end")

    async def _open_devices(self, spec: VmSpec, unused: contextlib.ExitStack) -> list[Device]:
        """Open what the guest's devices need. unused: closes them, should nobody take them."""
        devices: list[Device] = []

        def add(device: Device) -> None:
            unused.callback(device.close)
            devices.append(device)

        if spec.image is not None:
            add(open_disk(spec.image, "image", read_only=True))
        for disk in spec.disks:
            add(
                blank_disk(disk) if spec.saved_to else open_disk(disk.path, disk.id, read_only=disk.read_only)
            )
        self._networked = bool(spec.taps or spec.spare_taps)
        for tap in spec.taps:
            add(open_network(tap))
        add(open_entropy())
        add(await self._open_vsock())
        if spec.shared is not None and spec.saved_to is not None:
            add(FileSystem(None, spec.shared.tag, self._table.virtio_fs_queue_size))
        elif spec.shared is not None:
            add(await self._daemon.start(spec, spec.shared))
        if self._table.reclaim_guest_freed_memory:
            add(Balloon())
        return devices

    async def _open_vsock(self) -> Socket:
        vsock = vhost_vsock.open_device()
        if vsock is None:
            raise HostUnfitError(
                "cannot connect the guest: no /dev/vhost-vsock on this host; load vhost_vsock"
            )
        descriptor, cid = vsock
        try:
            await self._host.register_guest(cid)
        except BaseException:
            os.close(descriptor)
            raise
        self._transport = VsockTransport(self._host.connect_guest, f"guest {cid}")
        return Socket(descriptor, cid)

    def _build(
        self,
        devices: Sequence[Device],
        spares: Sequence[Block | Network],
        guest_ended: Callable[[str], None],
        spec: VmSpec,
    ) -> None:
        """Put the machine together; blocks, on a thread of its own."""
        assert self._console is not None
        line = kernel_command_line(spec, self._table.enable_debug)
        beginning, self._saving = choose(spec, line, [*devices, *spares], self._files)
        self._warnings = beginning.warnings
        board = beginning.prepare(Board(spec.vcpus, spec.memory_mib * MIB, self._table.enable_hugepages))
        self._machine = machine = Machine(board, self._console.write, guest_ended)
        for device in devices:
            machine.add_device(device)
        self._hotplug = Hotplug(machine, self._host, spares)
        beginning.fill(machine)

    async def _blame_virtiofsd(self) -> None:
        """Say that virtiofsd has ended, where it has: that is why it gave no answer.

        Raises:
            LaunchError: it has.
        """
        if self._daemon.child is None:
            return
        with anyio.move_on_after(10 * MOMENT):
            status = await self._daemon.child.wait()
            raise LaunchError(
                f"virtiofsd ended before the guest was ready: {self._daemon.describe(status)}",
                self._diagnostics(),
            )

    async def run(self) -> None:
        """See the contract."""
        if self._machine is None or self._worker is None or self._end is None or self._running:
            raise LaunchError("cannot run the virtual machine: it is not prepared, or runs already")
        processors = self._machine.processors
        try:
            if self._seal is not None:
                seal = self._seal
                await self._worker.run(lambda: processors.confine(seal))
            await self._verify_confinement()
            if self._end.done():
                raise LaunchError(self._end.result().reason, self._end.result().diagnostics)
            processors.release()
            self._running = True
        except BaseException:
            await self.stop()
            raise

    async def verify_confinement(self) -> None:
        """See the contract."""
        if not self._running:
            raise HypervisorError("there is no confinement to prove: the virtual machine is not running")
        await self._verify_confinement()

    async def _verify_confinement(self) -> None:
        """Ask the kernel: a filter on each thread, and one more on each vCPU's."""
        if self._seal is None:
            return
        assert self._own is not None
        assert self._machine is not None
        threads = await self._host.confinement(self._own)
        vcpus = self._machine.processors.threads
        breach = find_breach(threads, True, self._inherited) or find_breach(
            [thread for thread in threads if thread.tid in vcpus], True, self._inherited + 1
        )
        if breach is not None:
            raise ConfinementError(f"the runtime's process, which is the VMM, is not confined: {breach}")

    async def _stop(self) -> None:
        if self._making is not None and not self._making.done():
            if self._daemon.child is not None:
                await self._daemon.child.kill()
            await asyncio.wait({self._making})
        if self._machine is not None:
            self._machine.processors.end("it was stopped")
        if self._end is not None:
            await asyncio.wait({self._end})
        else:
            await self._release()

    async def pause(self) -> None:
        """See the contract."""
        machine, worker = self._running_machine("pause")
        await worker.run(machine.processors.hold)

    async def resume(self) -> None:
        """See the contract."""
        machine, _ = self._running_machine("resume")
        machine.processors.release()

    def _slots(self, purpose: str) -> Hotplug:
        self._running_machine(purpose)
        assert self._hotplug is not None
        return self._hotplug

    async def snapshot(self, directory: Path) -> None:
        """See the contract."""
        machine, worker = self._running_machine("save")
        saving = self._saving
        if saving is None or saving.directory != directory or not machine.processors.held:
            raise SnapshotError(
                f"cannot save the virtual machine in {directory}: it must be paused, and made with `saved_to`"
            )
        await worker.run(lambda: saving.write(machine))

    @classmethod
    def describe_template(cls, spec: VmSpec) -> Mapping[str, str]:
        """See the contract."""
        return describe(spec)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See the contract."""
        return self._warnings

    def _running_machine(self, purpose: str) -> tuple[Machine, Control]:
        reason = self._machine.processors.reason if self._machine is not None else None
        if self._machine is None or self._worker is None or not self._running or reason is not None:
            raise HypervisorError(f"cannot {purpose} the virtual machine: {reason or 'it is not running'}")
        return self._machine, self._worker

    @property
    def transport(self) -> GuestTransport:
        """See the contract."""
        if self._transport is None:
            raise HypervisorError("there is no way to the guest: the virtual machine was not started")
        return self._transport

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        """See the contract."""
        roles = ((self._own, "vmm"), (self._daemon.child, FILE_SERVER))
        return tuple(VmmProcess(role, child) for child, role in roles if child is not None)

    @property
    def console_tail(self) -> str:
        """See the contract."""
        return self._console.text if self._console is not None else ""

    async def _open_console(self) -> Console:
        debug = logging.getLogger(f"{__name__}.console").debug
        console = await Console.open(debug if self._table.enable_debug else None)
        self._ours.push_async_callback(console.aclose)
        return console

    def _watch_guest(self) -> Callable[[str], None]:
        """Return what the machine calls at the guest's end, on whichever thread."""
        verdict = ThreadResult[str]()
        self._guest_ended = verdict.future
        self._ours.callback(verdict.close)
        return verdict.tell

    async def _supervise(self, machine: Machine) -> VmExit:
        """Wait for the first end, then end everything."""
        assert self._guest_ended is not None
        child = self._daemon.child
        daemon = asyncio.ensure_future(child.wait()) if child is not None else None
        try:
            await asyncio.wait(
                {self._guest_ended, *({daemon} if daemon else ())}, return_when=asyncio.FIRST_COMPLETED
            )
            requested = self._requested
            first = FILE_SERVER if not self._guest_ended.done() else NAME
            status = daemon.result() if first == FILE_SERVER and daemon is not None else ExitStatus(code=0)
            machine.processors.end("virtiofsd ended")
        finally:
            await self._release()
            if self._own is not None:
                self._own.end()
        reason = f"the guest ended: {machine.processors.reason}"
        if first == FILE_SERVER:
            reason = f"virtiofsd ended: {self._daemon.describe(status)}"
        return VmExit(reason, first, status, requested, self._diagnostics())

    async def _release(self) -> None:
        """End virtiofsd and everything of ours; blocks the event loop for nothing."""
        if self._machine is not None and self._worker is not None:
            await self._worker.run(self._machine.close)
        await self._daemon.end(MOMENT)
        if self._console is not None:
            await self._console.finish(MOMENT)
        self._files.close()
        await self._ours.aclose()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _diagnostics(self) -> dict[str, str]:
        texts = {"console": self.console_tail, f"{FILE_SERVER} stderr": self._daemon.words}
        return {heading: text for heading, text in texts.items() if text}


def _nothing(number: int, frame: object) -> None:
    """The signal has done its work when it has interrupted KVM_RUN."""
