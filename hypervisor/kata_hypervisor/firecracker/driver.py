"""The Firecracker driver: what it does its own way; the rest is `RestMachine`'s.

What confines it: its API thread puts itself under a filter before it answers the first request; each vCPU's
thread does so before the guest's first instruction, and the main thread before it handles the first event of
the machine, but possibly after it has answered InstanceStart. So what is verified is: when it is prepared,
the API's thread; when it runs and the main thread has answered once more, every thread. A Firecracker that
ignores its options is refused by the first of these, with no guest in it; and so is one whose filters, read
back from the kernel, allow every call: those of a debug build, and of one for glibc.

Without the jailer, Firecracker is the pod's user in a root of its own, as every VMM is. With it, it is in one
that the jailer makes in a directory of the sandbox's, which only the host's side of the driver sees.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kata_agent.transports import HybridVsockTransport
from kata_hypervisor import bootable, exit_reason, host_checks, sockets, versions
from kata_hypervisor.concurrency import finish
from kata_hypervisor.contract import Capabilities, Disk, VmSpec
from kata_hypervisor.errors import HostUnfitError, HypervisorError, NotSupportedError
from kata_hypervisor.firecracker import machine
from kata_hypervisor.firecracker.info import EMPTY, FIRECRACKER, MOST_SPARES
from kata_hypervisor.host import Host
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.rest import RestClient, RestError, Step
from kata_hypervisor.rest_machine import CONSOLE, RestMachine
from kata_hypervisor.seccomp.confinement import ThreadConfinement
from kata_hypervisor.vmm_paths import RUN_DIRECTORY

if TYPE_CHECKING:
    from kata_configuration.models.firecracker import Firecracker as Table

__all__ = ["FirecrackerDriver"]

API_THREAD = "fc_api"
API_SOCKET, VSOCK_SOCKET = "firecracker.sock", "firecracker.vsock"
MOST_VCPUS = 32
RESTORES = (1, 16, 0)


class FirecrackerDriver(RestMachine):
    """One virtual machine in Firecracker; see `RestMachine`."""

    info = FIRECRACKER
    hints: ClassVar[exit_reason.Hints] = (
        (
            re.compile(r"intercepting a bad syscall"),
            "its own seccomp filter blocks a call; disable_seccomp = true in [hypervisor.firecracker] "
            "removes it",
        ),
        (re.compile(r"/dev/kvm|Error creating KVM"), "it cannot use KVM: see kata-ctl check"),
        (re.compile(r"Cannot allocate memory"), "the host has too little free memory for default_memory"),
    )

    def __init__(
        self, table: Table, host: Host, *, start_budget: float | None = None, stop_budget: float = 2.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._table = table
        # A jailed Firecracker reaches no directory of the host that a snapshot could be written into, and no
        # file that was not there when it was jailed.
        jailed = table.jailer_path is not None
        self.capabilities = Capabilities(
            disks=True,
            block_hotplug=not jailed,
            taps=True,
            pause=True,
            snapshot=not jailed,
            restore=not jailed,
        )
        # What fills each disk that was without content: the id of what was plugged in, or None.
        self._spares: dict[str, str | None] = {}
        self._spec: VmSpec | None = None
        # As Firecracker sees them, and as we do.
        self._places: machine.Places | None = None
        self._api: Path | None = None

    # -- start ---------------------------------------------------------------------------------------------

    def _check_host(self, spec: VmSpec) -> list[str]:
        here = f"in {self.section}"
        host_checks.check_kvm(host_checks.KVM, self.info.name)
        host_checks.check_executable(self.vmm, self._table.path, f"install it, or correct path {here}")
        if self._table.jailer_path is not None:
            host_checks.check_executable("jailer", self._table.jailer_path, f"correct jailer_path {here}")
        for name, path in machine.files_of(spec).items():
            host_checks.check_readable(f"the guest's {name}", path, f"check the paths {here}")
        if spec.spare_disks > MOST_SPARES:
            raise HostUnfitError(
                f"firecracker has interrupts for {MOST_SPARES} later disks, {spec.spare_disks} were asked for"
            )
        if spec.vcpus > MOST_VCPUS:
            raise HostUnfitError(f"firecracker runs at most {MOST_VCPUS} vCPUs, {spec.vcpus} were asked for")
        return host_checks.check_guest_memory(
            spec.memory_mib, self.section, huge=self._table.enable_hugepages
        )

    async def _spawn(self, spec: VmSpec) -> HybridVsockTransport | None:
        self._spec = spec
        self._spares = {disk.id: None for disk in machine.spares_of(self._table, spec)}
        if self._table.jailer_path is not None:
            return await self._spawn_jailed(spec)
        directory = spec.directory / RUN_DIRECTORY
        api = sockets.check_path(directory / API_SOCKET, "firecracker's API socket")
        vsock = sockets.check_path(directory / VSOCK_SOCKET, "the guest's vsock socket")
        files = {path: path for path in machine.files_of(spec).values()}
        self._places = machine.Places(api, vsock, files)
        self._api = api
        argv = machine.command_line(self._table, spec, api)
        shown = machine.shown(spec)
        await self._children.spawn(self.vmm, argv, {}, stdout=CONSOLE, privileges=shown)
        return await self._hybrid_vsock(vsock)

    async def _spawn_jailed(self, spec: VmSpec) -> HybridVsockTransport:
        writable = [disk.id for disk in spec.disks if not disk.read_only]
        if writable:
            raise NotSupportedError(
                f"the disk {writable[0]} is to be written: a jailed firecracker's user may write to no file "
                "of the host"
            )
        base = spec.directory / "jail"
        files = machine.files_of(spec)
        root = machine.jail_root(self._table, spec, base)
        await self._host.make_jail(root, files)
        self._places = machine.Places(
            Path("/", API_SOCKET),
            Path("/", VSOCK_SOCKET),
            {path: Path("/", name) for name, path in files.items()},
        )
        argv = machine.jailer_command_line(self._table, spec, base, self._host.user, self._places.api)
        jailer = Privileges(open_files=machine.NO_FILE, file_size=None, jailer=True)
        await self._children.spawn(self.vmm, argv, {}, stdout=CONSOLE, privileges=jailer)
        self._api = root / API_SOCKET
        return await self._hybrid_vsock(root / VSOCK_SOCKET)

    async def _connect(self) -> RestClient:
        assert self._api is not None
        return RestClient(await self._api_at(self._api), self.vmm, budget=self._start_budget)

    async def _version(self, client: RestClient) -> str:
        answer = await client.request("GET", "/version")
        if not isinstance(answer, dict) or not isinstance(answer.get("firecracker_version"), str):
            raise RestError(f"{self.vmm}'s answer to GET /version has no version")
        version: str = answer["firecracker_version"]
        # A unikernel's is another kind of file, and was looked at before.
        if self._spec and (sentence := bootable.unbootable(self.info, version, self._spec.kernel)):
            raise HostUnfitError(f"cannot boot the guest: {sentence}")
        return version

    def _steps(self, spec: VmSpec) -> Iterator[Step]:
        assert self._places is not None
        for purpose, path, body in machine.requests(self._table, spec, self._places):
            yield Step(purpose, "PUT", path, body)

    def _restoring(
        self, spec: VmSpec, template: Path, version: str, lent: contextlib.ExitStack
    ) -> Iterator[Step]:
        assert self._places is not None
        number = versions.numbers_of(version)
        if number is not None and number < RESTORES:
            raise NotSupportedError(
                f"firecracker {version} cannot start from {template}: it would look for the guest's socket "
                "where the saved machine had it; 1.16 and later take another path"
            )
        yield Step(
            "restoring the machine", "PUT", "/snapshot/load", machine.restoring(template, spec, self._places)
        )
        for disk in spec.disks:
            body = machine.filling(disk.id, disk.path)
            yield Step(f"giving the disk {disk.id} its content", "PATCH", f"/drives/{disk.id}", body)
        # Answered by the main thread, which is under its filter then.
        yield Step("looking at the restored machine", "GET", "/")

    async def _boot(self, client: RestClient) -> None:
        if self._restored:
            await client.request("PATCH", "/vm", {"state": "Resumed"})
        else:
            await client.request("PUT", "/actions", {"action_type": "InstanceStart"})
        answer = await client.request("GET", "/")
        state = answer.get("state") if isinstance(answer, dict) else None
        if state != "Running":
            raise RestError(
                f"{self.vmm} reports the state {state!r} for a machine that was started, not 'Running'"
            )

    # -- confinement ---------------------------------------------------------------------------------------

    def _find_breach(self, threads: Sequence[ThreadConfinement], *, running: bool) -> str | None:
        if not self._confined or running:
            return self._breach_of(threads, self._confined, self._inherited)
        api = [thread for thread in threads if thread.name == API_THREAD]
        if not api:
            return f"the kernel lists no thread {API_THREAD} of {self.vmm}"
        return self._breach_of(api, True, self._inherited)

    # -- commands ------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """See the contract."""
        await self._command("pause the virtual machine", "PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        """See the contract."""
        await self._command("resume the virtual machine", "PATCH", "/vm", {"state": "Resumed"})

    async def add_disk(self, disk: Disk) -> None:
        """See the contract: the first of the machine's disks that has no content is filled."""
        if not self.capabilities.block_hotplug:
            raise NotSupportedError(
                f"cannot plug the disk {disk.id}: nothing of the host appears in a jail later, so a jailed "
                f"firecracker's sandbox has one container: take jailer_path out of {self.section}"
            )
        if not disk.read_only:
            raise NotSupportedError(
                f"cannot plug the disk {disk.id}: firecracker's later disks are read-only"
            )
        spare = next((name for name, held in self._spares.items() if held is None), None)
        if spare is None:
            raise HypervisorError(
                f"cannot plug the disk {disk.id}: the {len(self._spares)} that the machine was made to take "
                "are in use, one for each container after the first"
            )
        path = await self._host.show_disk(disk.id, disk.path, write=False)
        self._spares[spare] = disk.id
        try:
            await self._fill(f"plug the disk {disk.id}", spare, path)
        except BaseException:
            self._spares[spare] = None
            await finish(self._host.hide_disk(disk.id))
            raise

    async def remove_disk(self, name: str) -> None:
        """See the contract: the disk is without content again."""
        if not self.capabilities.block_hotplug:
            raise self._unsupported("take a disk out of a jailed machine")
        spare = self._spare_of(name)
        await self._fill(f"take out the disk {name}", spare, Path(EMPTY))
        self._spares[spare] = None
        await self._host.hide_disk(name)

    def disk_node(self, name: str) -> str:
        """See the contract."""
        assert self._spec is not None
        return machine.node_of(self._spec, list(self._spares).index(self._spare_of(name)))

    def _spare_of(self, name: str) -> str:
        for spare, held in self._spares.items():
            if held == name:
                return spare
        raise HypervisorError(f"cannot find the disk {name}: it was not plugged in")

    async def _fill(self, purpose: str, spare: str, path: Path) -> None:
        await self._command(purpose, "PATCH", f"/drives/{spare}", machine.filling(spare, path))

    async def snapshot(self, directory: Path) -> None:
        """See the contract."""
        body = {"snapshot_type": "Full", **machine.saved_files(directory)}
        await self._save(directory, "PUT", "/snapshot/create", body)

    # -- end -----------------------------------------------------------------------------------------------

    async def _ask_to_quit(self, client: RestClient) -> None:
        """Firecracker has no request that ends it: the kernel does, and its files are removed here."""
        await self._children.kill()
