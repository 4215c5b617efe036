"""The Firecracker driver: what it does its own way; the rest is `RestMachine`'s.

What confines it: its API thread puts itself under a filter before it answers the first request; each vCPU's
thread does so before the guest's first instruction, and the main thread before it handles the first event of
the machine, but possibly after it has answered InstanceStart. So the proof is: when it is prepared, the API's
thread; when it runs and the main thread has answered once more, every thread. A Firecracker that ignores its
options is refused by the first of these, with no guest in it; and so is one whose filters, read back from the
kernel, forbid nothing: those of a debug build, and of one for glibc.

Where the jailer is configured, Firecracker has a root directory, a user and limits of its own besides. Its
sockets are then reached through /proc/PID/root: nobody else's view of the file system has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from kata_agent.transports import HybridVsockTransport
from kata_configuration.models.firecracker import Firecracker as Table
from kata_hypervisor import ending, fitness, sockets, versions
from kata_hypervisor.contract import Capabilities, VmSpec
from kata_hypervisor.errors import HostUnfitError, NotSupportedError
from kata_hypervisor.firecracker import machine
from kata_hypervisor.host import Host
from kata_hypervisor.rest import RestClient, RestError
from kata_hypervisor.rest_machine import CONSOLE, RestMachine, Step
from kata_hypervisor.seccomp.proof import ThreadConfinement, find_breach

__all__ = ["FirecrackerDriver"]

API_THREAD = "fc_api"
API_SOCKET, VSOCK_SOCKET = "firecracker.sock", "firecracker.vsock"
MOST_VCPUS = 32


class FirecrackerDriver(RestMachine):
    """One virtual machine in Firecracker; see `RestMachine`."""

    vmm = "firecracker"
    section = "[hypervisor.firecracker]"
    supported = versions.FIRECRACKER
    hints: ClassVar[ending.Hints] = (
        (
            re.compile(r"intercepting a bad syscall"),
            "blocked by its own filter; disable_seccomp = true in [hypervisor.firecracker] takes it away",
        ),
        (re.compile(r"/dev/kvm|Error creating KVM"), "it cannot use KVM: see kata-ctl check"),
        (re.compile(r"Cannot allocate memory"), "the host has too little free memory for default_memory"),
    )

    def __init__(
        self, table: Table, host: Host, *, start_budget: float = 30.0, stop_budget: float = 2.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._table = table
        # A jailed Firecracker reaches no directory of the host that a snapshot could be written into.
        jailed = table.jailer_path is not None
        self.capabilities = Capabilities(disks=True, taps=True, pause=True, snapshot=not jailed)
        # As Firecracker sees them, and as we do.
        self._places: machine.Places | None = None
        self._api: Path | None = None
        self._left: tuple[Path, ...] = ()

    # -- start ---------------------------------------------------------------------------------------------

    def _check_host(self, spec: VmSpec) -> list[str]:
        here = f"in {self.section}"
        fitness.check_kvm(fitness.KVM, "Firecracker runs nothing without it")
        fitness.check_executable(self.vmm, self._table.path, f"install it, or correct path {here}")
        if self._table.jailer_path is not None:
            fitness.check_executable("jailer", self._table.jailer_path, f"correct jailer_path {here}")
        elif spec.network_namespace is not None:
            raise NotSupportedError(
                "firecracker enters a network namespace by its jailer only: set jailer_path " + here
            )
        for name, path in machine.files_of(spec).items():
            fitness.check_readable(f"the guest's {name}", path, f"check the paths {here}")
        if spec.vcpus > MOST_VCPUS:
            raise HostUnfitError(f"firecracker runs at most {MOST_VCPUS} vCPUs, {spec.vcpus} were asked for")
        warnings = fitness.check_memory(spec.memory_mib, fitness.MEMINFO, self.section)
        if self._table.jailer_path is None:
            warnings.append(
                f"firecracker runs without its jailer: set jailer_path {here} to confine it further"
            )
        return warnings

    async def _spawn(self, spec: VmSpec) -> HybridVsockTransport | None:
        if self._table.jailer_path is not None:
            return await self._spawn_jailed(spec)
        api = sockets.check_path(spec.directory / API_SOCKET, "firecracker's API socket")
        vsock = sockets.check_path(spec.directory / VSOCK_SOCKET, "the guest's vsock socket")
        for path in (api, vsock):
            sockets.clear(path)
        self._left = (api, vsock)
        files = {path: path for path in machine.files_of(spec).values()}
        self._places = machine.Places(api, vsock, files)
        self._api = api
        argv = machine.command_line(self._table, spec, api)
        await self._children.spawn(self.vmm, argv, {}, stdout=CONSOLE)
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
        await self._host.make_jail(machine.jail_root(self._table, spec, base), files)
        self._places = machine.Places(
            Path("/", API_SOCKET),
            Path("/", VSOCK_SOCKET),
            {path: Path("/", name) for name, path in files.items()},
        )
        user = machine.unprivileged_user(spec.directory)
        argv = machine.jailer_command_line(self._table, spec, base, user, self._places.api)
        child = await self._children.spawn(self.vmm, argv, {}, stdout=CONSOLE)
        root = Path(f"/proc/{child.pid}/root")
        self._api = root / API_SOCKET
        return await self._hybrid_vsock(root / VSOCK_SOCKET)

    async def _connect(self) -> RestClient:
        assert self._api is not None
        return RestClient(await sockets.connect(self._api), self.vmm, budget=self._start_budget)

    async def _version(self, client: RestClient) -> str:
        answer = await client.request("GET", "/version")
        if not isinstance(answer, dict) or not isinstance(answer.get("firecracker_version"), str):
            raise RestError(f"{self.vmm} told no version when it was asked")
        version: str = answer["firecracker_version"]
        return version

    def _steps(self, spec: VmSpec) -> Iterator[Step]:
        assert self._places is not None
        for purpose, path, body in machine.requests(self._table, spec, self._places):
            yield Step(purpose, "PUT", path, body)

    async def _boot(self, client: RestClient) -> None:
        await client.request("PUT", "/actions", {"action_type": "InstanceStart"})
        answer = await client.request("GET", "/")
        state = answer.get("state") if isinstance(answer, dict) else None
        if state != "Running":
            raise RestError(f"{self.vmm} says that its machine is {state!r} after it was started")

    # -- proof ---------------------------------------------------------------------------------------------

    def _find_breach(self, threads: Sequence[ThreadConfinement], *, running: bool) -> str | None:
        if not self._confined or running:
            return find_breach(threads, self._confined, self._inherited)
        api = [thread for thread in threads if thread.name == API_THREAD]
        if not api:
            return f'it has no thread "{API_THREAD}"'
        return find_breach(api, True, self._inherited)

    # -- commands ------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """See the contract."""
        await self._command("pause the virtual machine", "PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        """See the contract."""
        await self._command("resume the virtual machine", "PATCH", "/vm", {"state": "Resumed"})

    async def snapshot(self, directory: Path) -> None:
        """See the contract."""
        if not self.capabilities.snapshot:
            raise NotSupportedError("a jailed firecracker cannot write a snapshot outside of its jail")
        body = {
            "snapshot_type": "Full",
            "snapshot_path": str(directory / "state"),
            "mem_file_path": str(directory / "memory"),
        }
        await self._command("snapshot the virtual machine", "PUT", "/snapshot/create", body)

    # -- end -----------------------------------------------------------------------------------------------

    async def _quit(self, client: RestClient) -> None:
        """Firecracker has no request that ends it: the kernel does, and its files are removed here."""
        await self._children.kill()

    @property
    def _made(self) -> tuple[Path, ...]:
        return self._left
