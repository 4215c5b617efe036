"""The Cloud Hypervisor driver: what it does its own way; the rest is `RestMachine`'s.

What confines it: Cloud Hypervisor puts a filter on each thread as its first act, and a second, smaller one on
each vCPU's. Its main thread has none: it starts the others, and then waits for their end. Below them all is
ours, from before the program runs. So what is verified is: the main thread is under one filter, every other
under two, every vCPU under three; unconfined, none has any.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kata_agent.transports import HybridVsockTransport
from kata_hypervisor import exit_reason, host_checks, sockets, virtiofsd
from kata_hypervisor.cloud_hypervisor import allowlist, machine, saved
from kata_hypervisor.cloud_hypervisor.events import EventStream
from kata_hypervisor.cloud_hypervisor.info import API_BASE, CLOUD_HYPERVISOR
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import (
    Capabilities,
    Disk,
    MachineSize,
    SharedDirectory,
    VmSpec,
    check_size,
)
from kata_hypervisor.errors import HypervisorError, NotSupportedError
from kata_hypervisor.host import Host
from kata_hypervisor.rate_limiter import rate_limiter
from kata_hypervisor.rest import RestClient, RestError, Step
from kata_hypervisor.rest_machine import CONSOLE, RestMachine
from kata_hypervisor.seccomp.confinement import ThreadConfinement
from kata_hypervisor.vmm_paths import RUN_DIRECTORY

if TYPE_CHECKING:
    from kata_configuration.models.cloud_hypervisor import CloudHypervisor as Table

__all__ = ["CloudHypervisorDriver"]

VCPU_FILTERS = 2

# What an event of the guest means for its machine, which ends with it: a container's guest does not return.
ENDINGS = {
    ("vm", "rebooting"): "the guest reset itself",
    ("guest", "panic"): "the guest's kernel panicked",
}
REMOVED = ("vm", "device-removed")
"""The event that a device is gone, which the guest has let go; with its id."""


class CloudHypervisorDriver(RestMachine):
    """One virtual machine in Cloud Hypervisor; see `RestMachine`."""

    info = CLOUD_HYPERVISOR
    capabilities = Capabilities(
        file_sharing=True,
        disks=True,
        block_hotplug=True,
        device_hotplug=True,
        device_nodes=True,
        taps=True,
        tap_descriptors=True,
        pause=True,
        resize=True,
        snapshot=True,
        restore=True,
    )
    hints: ClassVar[exit_reason.Hints] = (
        (
            re.compile(r"Probable seccomp violation: (?P<call>si_syscall=\d+)"),
            "its own seccomp filter blocks a call; disable_seccomp = true in [hypervisor.clh] removes it",
        ),
        (re.compile(r"CreateHypervisor|/dev/kvm"), "it cannot use KVM: see kata-ctl check"),
        (re.compile(r"Cannot allocate memory"), "the host has too little free memory for default_memory"),
    )

    def __init__(
        self, table: Table, host: Host, *, start_budget: float | None = None, stop_budget: float = 2.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._table = table
        self._file_server = virtiofsd.FileServer(table, self._children, host)
        self._api: socket.socket | None = None
        self._sockets: machine.Sockets | None = None
        self._spec: VmSpec | None = None
        self._events = EventStream()
        self._event_received = asyncio.Event()
        # By the id of a disk that is to be taken out: set when it is gone.
        self._removed: dict[str, asyncio.Event] = {}
        self._reason: str | None = None
        self._ending: asyncio.Task[None] | None = None

    # -- start ---------------------------------------------------------------------------------------------

    def _check_host(self, spec: VmSpec) -> list[str]:
        here = f"in {self.section}"
        host_checks.check_kvm(host_checks.KVM, self.info.name)
        host_checks.check_executable(self.vmm, self._table.path, f"install it, or correct path {here}")
        host_checks.check_readable("the guest's kernel", spec.kernel, f"correct kernel {here}")
        for what, path, key in (("initrd", spec.initrd, "initrd"), ("image", spec.image, "image")):
            if path is not None:
                host_checks.check_readable(f"the guest's {what}", path, f"correct {key} {here}")
        for disk in spec.disks:
            host_checks.check_readable(f"the disk {disk.id}", disk.path, "check where it came from")
        host_checks.check_readable(
            "the source of random numbers", self._table.entropy_source, f"correct entropy_source {here}"
        )
        return host_checks.check_guest_memory(
            spec.memory_mib, self.section, huge=self._table.enable_hugepages
        )

    async def _spawn(self, spec: VmSpec) -> HybridVsockTransport:
        self._spec = spec
        directory = spec.directory / RUN_DIRECTORY
        vsock = sockets.check_path(directory / "clh.vsock", "the guest's vsock socket")
        filesystem = sockets.check_path(directory / "clh-fs.sock", "virtiofsd's socket")
        self._sockets = machine.Sockets(vsock, filesystem)
        if spec.template is not None:
            self._children.ours.enter_context(saved.view(spec.directory))
        with contextlib.ExitStack() as theirs:
            if spec.shared is not None:
                await self._start_virtiofsd(spec.shared, filesystem)
            listener, self._api = virtiofsd.rendezvous(spec.directory)
            self._children.ours.callback(self._api.close)
            theirs.callback(listener.close)
            fds = {
                machine.API: listener.fileno(),
                machine.CONSOLE: await self._children.pipe(CONSOLE, theirs),
                machine.EVENTS: await self._children.read(self._take_events, theirs),
            }
            seccomp = None
            if self._confined:
                seccomp, self._born_with = allowlist.build(self._table.path), self._inherited + 1
            argv, shown = machine.command_line(self._table), machine.shown(self._table, spec)
            await self._children.spawn(self.vmm, argv, fds, seccomp=seccomp, privileges=shown)
        return await self._hybrid_vsock(vsock)

    async def _start_virtiofsd(self, shared: SharedDirectory, path: Path) -> None:
        """Start virtiofsd on a socket with a name: Cloud Hypervisor connects to it when it boots."""
        with await self._host.listen_for_vmm(path) as listener:
            await self._file_server.start(shared.path, listener)

    async def _connect(self) -> RestClient:
        """Wait for a sign of each thread that the main one starts, and that puts on its filter itself.

        Those of the machine and of the API are alive when a request is answered; that of the events is not
        before its first event.
        """
        assert self._api is not None
        await self._event_received.wait()
        return RestClient(self._api, self.vmm, base=API_BASE, budget=self._start_budget)

    async def _verify_confinement(self) -> None:
        """Verify virtiofsd too. One that waits for a connection filters itself when the machine boots."""
        await super()._verify_confinement()
        if not self._running and self._file_server.waits_for_connection:
            return
        self._warnings += await self._file_server.verify(self._start_budget, read_back=not self._running)

    async def _version(self, client: RestClient) -> str:
        answer = await client.request("GET", "/vmm.ping")
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
            raise RestError(f"{self.vmm}'s answer to GET /vmm.ping has no version")
        version: str = answer["version"]
        return version

    def _steps(self, spec: VmSpec) -> Iterator[Step]:
        assert self._sockets is not None
        config = machine.vm_config(self._table, spec, self._sockets)
        yield Step("describing the machine", "PUT", "/vm.create", config)
        for tap in spec.taps:
            body = machine.net_config(self._table, tap)
            yield Step(f"adding the network device {tap.id}", "PUT", "/vm.add-net", body, tap.fds)

    def _restoring(
        self, spec: VmSpec, template: Path, version: str, lent: contextlib.ExitStack
    ) -> Iterator[Step]:
        if spec.taps:
            raise NotSupportedError(
                f"{self.vmm} cannot start a machine with network devices from {template}: their descriptors "
                "cannot be handed over with it; save and start one without"
            )
        assert self._sockets is not None
        config = machine.vm_config(self._table, spec, self._sockets)
        view = spec.directory / saved.VIEW
        lent.enter_context(saved.template_view(template, view, config))
        yield Step("restoring the machine", "PUT", "/vm.restore", {"source_url": f"file://{view}"})

    async def _boot(self, client: RestClient) -> None:
        """Boot it, which makes the machine and lets it run; a restored one is made, and goes on."""
        if self._restored:
            await self._end_loading()
            await client.request("PUT", "/vm.resume")
        else:
            await client.request("PUT", "/vm.boot")
            await self._end_loading()

    async def _end_loading(self) -> None:
        """Have our filter allow no more than a running machine needs."""
        if self._confined:
            await self._host.end_loading(self._children[self.vmm])

    @property
    def _limits(self) -> Mapping[str, Any] | None:
        """See RestMachine."""
        return rate_limiter(self._table) or None

    # -- confinement ---------------------------------------------------------------------------------------

    def _find_breach(self, threads: Sequence[ThreadConfinement], *, running: bool) -> str | None:
        if not self._confined:
            return self._breach_of(threads, False, self._inherited)
        main = self._children[self.vmm].pid
        breach = self._breach_of([thread for thread in threads if thread.tid == main], True, self._inherited)
        others = [thread for thread in threads if thread.tid != main]
        breach = breach or self._breach_of(others, True, self._born_with)
        vcpus = [thread for thread in threads if re.fullmatch(CLOUD_HYPERVISOR.vcpu_threads, thread.name)]
        if breach is None and running:
            if not vcpus:
                return f"the kernel lists no thread of a virtual CPU of {self.vmm}"
            return self._breach_of(vcpus, True, self._born_with + VCPU_FILTERS - 1)
        return breach

    # -- commands ------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """See the contract."""
        await self._command("pause the virtual machine", "PUT", "/vm.pause")

    async def resume(self) -> None:
        """See the contract."""
        await self._command("resume the virtual machine", "PUT", "/vm.resume")

    async def add_disk(self, disk: Disk) -> None:
        """See the contract."""
        path = await self._host.show_disk(disk.id, disk.path, write=not disk.read_only)
        # A guest's discarded blocks stay as they are: holes are made in images that belong to a machine.
        config = machine.disk_config(self._table, replace(disk, path=path)) | {"sparse": False}
        try:
            await self._command(f"plug the disk {disk.id}", "PUT", "/vm.add-disk", config)
        except BaseException:
            await finish(self._host.hide_disk(disk.id))
            raise
        await self._verify_changed()

    async def remove_disk(self, name: str) -> None:
        """See the contract: Cloud Hypervisor asks the guest for it, and has closed it when the guest agrees.

        One that the guest keeps stays the machine's.
        """
        what = f"take out the disk {name}"
        removed = self._removed.setdefault(name, asyncio.Event())
        await self._command(what, "PUT", "/vm.remove-device", {"id": name})
        assert self._end is not None
        gone = asyncio.ensure_future(removed.wait())
        try:
            waited = {gone, self._end}
            await asyncio.wait(waited, timeout=self._host.patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self._end.done():
            raise HypervisorError(f"cannot {what}: {self._end.result().reason}")
        if not removed.is_set():
            raise HypervisorError(f"cannot {what}: the guest does not let it go")
        del self._removed[name]
        await self._host.hide_disk(name)

    async def resize(self, size: MachineSize) -> MachineSize:
        """See the contract; Cloud Hypervisor says what it has asked the guest for, not what that did."""
        assert self._spec is not None
        check_size(self._spec, size)
        body = {"desired_vcpus": size.vcpus}
        if self._spec.later_memory_mib:
            body["desired_ram"] = size.memory_mib * machine.MIB
        await self._command("resize the virtual machine", "PUT", "/vm.resize", body)
        await self._verify_changed()
        return size

    async def snapshot(self, directory: Path) -> None:
        """See the contract."""
        await self._save(directory, "PUT", "/vm.snapshot", {"destination_url": f"file://{directory}"})

    # -- end -----------------------------------------------------------------------------------------------

    def _take_events(self, data: bytes) -> None:
        self._event_received.set()
        for source, name, properties in self._events.feed(data):
            if (source, name) in ENDINGS and self._reason is None:
                self._reason = ENDINGS[source, name]
                self._ending = asyncio.ensure_future(self._children.kill())
            if (source, name) == REMOVED and (waited := self._removed.get(str(properties.get("id")))):
                waited.set()

    def _own_reason(self) -> str | None:
        return self._reason

    async def _ask_to_quit(self, client: RestClient) -> None:
        await client.request("PUT", "/vmm.shutdown", budget=self._stop_budget)
