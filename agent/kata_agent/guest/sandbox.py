"""The sandbox: what is shared by all containers of this virtual machine, and the containers themselves."""

from __future__ import annotations

import os
import re
import threading
from typing import Any

from kata_agent.constants import PID_ANNOTATION
from kata_agent.guest import devices, hooks, log, system
from kata_agent.guest.cgroup import ROOT, Cgroup, ContainersMemory, check_memory, container_path
from kata_agent.guest.container import Container
from kata_agent.guest.errors import (
    ExistsError,
    GuestError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from kata_agent.guest.namespaces import SharedNamespaces
from kata_agent.guest.oom import OomWatcher
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.runtime import Crun
from kata_agent.guest.shares import SharedFiles
from kata_agent.guest.stdio import Ports, Stdio
from kata_agent.guest.storage import SANDBOX, StorageTable
from kata_agent.guest.streams import StreamTable
from kata_agent.guest.wiring import PIPE_SIZE
from kata_agent.protos import agent_pb2

BASE = "/run/kata-containers"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_RESERVED = ("shared", "sandbox", "watched")  # directories beside the bundles
_SHM = {
    "destination": "/dev/shm",
    "type": "tmpfs",
    "source": "shm",
    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
}


class Sandbox:
    """The state of the agent. All methods may be called from any thread."""

    def __init__(
        self,
        reaper: Reaper,
        crun: Crun,
        streams: StreamTable,
        *,
        pipe_size: int = PIPE_SIZE,
        cgroup_root: str = ROOT,
    ) -> None:
        self.streams = streams
        self.reaper = reaper
        self.oom = OomWatcher()
        self.memory = ContainersMemory(cgroup_root)
        self.storages = StorageTable()
        self.shares = SharedFiles(
            f"{BASE}/shared/containers", f"{BASE}/sandbox/memory", f"{BASE}/sandbox/volumes"
        )
        self._crun = crun
        self._pipe_size = pipe_size
        self._cgroup_root = cgroup_root
        self._namespaces = SharedNamespaces()
        self._lock = threading.Lock()
        self._created = False
        self._busy: set[str] = set()  # ids of containers that are being created or removed
        self._pid_owner = ""  # the container whose pid namespace is the sandbox's
        self._unwanted: set[str] = set()  # of those that are being created, to be removed then
        self._containers: dict[str, Container] = {}
        self._hooks: hooks.Hooks = {}  # of every container

    def create(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Prepare the guest for containers.

        Raises:
            ExistsError: that was done already.
            InvalidRequestError: the guest has no hooks where it should.
        """
        with self._lock:
            if self._created:
                raise ExistsError("this guest has its sandbox already")
            self._created = True
        try:
            for module in request.kernel_modules:
                system.load_module(module.name, list(module.parameters), self.reaper)
            os.makedirs(BASE, exist_ok=True)
            self._namespaces.create(request.hostname)
            self.storages.add(request.storages, SANDBOX)
            if request.guest_hook_path:
                self._hooks = hooks.find(request.guest_hook_path)
            system.set_name_servers(list(request.dns))
        except BaseException:
            self.storages.release(SANDBOX)
            self._namespaces.remove()
            self._created = False
            raise

    def destroy(self) -> None:
        """Remove all containers and storages, and write everything to disk; the first failure is raised."""
        failures: list[Exception] = []
        with self._lock:
            cids = list(self._containers)
        for cid in cids:
            try:
                self.remove_container(cid)
            except Exception as error:  # noqa: BLE001 - the others are removed all the same; raised below
                log.info(f"destroy sandbox: {error}")
                failures.append(error)
        self.storages.release(SANDBOX)
        os.sync()
        if failures:
            raise failures[0]

    def create_container(self, request: agent_pb2.CreateContainerRequest, spec: dict[str, Any]) -> None:
        """Set a container up, short of starting its program. On failure nothing of it is left.

        spec: the OCI spec of the request.

        Raises:
            StateError: it was removed meanwhile: who asked for it had no more patience.
        """
        cid = check_id(request.container_id, "container id")
        stdio = Ports(request.stdin_port, request.stdout_port, request.stderr_port).claim(self.streams)
        try:
            self._reserve(cid)
            try:
                container = self._create_container(cid, request, spec, stdio)
                with self._lock:
                    self._containers[cid] = container
            finally:
                with self._lock:
                    self._busy.discard(cid)
                    unwanted = cid in self._unwanted
                    self._unwanted.discard(cid)
            if unwanted:
                self.remove_container(cid)
                raise StateError(f"container {cid} was removed while it was created")
        except BaseException:
            stdio.close()
            raise

    def _reserve(self, cid: str) -> None:
        with self._lock:
            if not self._created:
                raise StateError("there is no sandbox yet: create it first")
            if cid in _RESERVED:
                raise InvalidRequestError(f"container id {cid!r} is reserved")
            if cid in self._containers or cid in self._busy:
                raise ExistsError(f"container {cid} exists in this sandbox")
            self._busy.add(cid)

    def _create_container(
        self, cid: str, request: agent_pb2.CreateContainerRequest, spec: dict[str, Any], stdio: Stdio
    ) -> Container:
        cgroup = self._adapt(cid, request, spec)
        try:
            for entry in request.storages:
                self.shares.know(entry.source)
            self.storages.add(request.storages, cid)
            self.shares.prepare(cid, spec)
            container = Container(
                cid,
                spec,
                cgroup,
                crun=self._crun,
                reaper=self.reaper,
                base=BASE,
                pipe_size=self._pipe_size,
            )
            container.create(stdio)
            if request.sandbox_pidns and not self._namespaces.pid:
                self._share_pid(container)
        except BaseException:
            self.shares.release(cid)
            self.storages.release(cid)
            raise
        self.oom.add(cid, cgroup.directory)
        return container

    def _share_pid(self, container: Container) -> None:
        """Make a container's pid namespace the sandbox's; a container that has ended meanwhile is removed."""
        try:
            self._namespaces.keep_pid(container.process(container.cid).pid)
        except OSError as error:
            container.remove()
            raise GuestError(
                f"the pid namespace of container {container.cid} cannot be shared: {error}"
            ) from None
        self._pid_owner = container.cid

    def _adapt(self, cid: str, request: agent_pb2.CreateContainerRequest, spec: dict[str, Any]) -> Cgroup:
        """What only the guest can put into a spec; returns the container's cgroup."""
        if "process" not in spec or not spec["process"].get("args"):
            raise InvalidRequestError(f"container {cid}: the spec has no process to run")
        hooks.add(self._hooks, spec)
        devices.apply(list(request.devices), spec, self.reaper)
        system.load_socket_option_tables(spec, self.reaper)
        self._namespaces.apply(spec, pid=self._pid_namespace(request, spec))
        _set_network_parameters(spec["linux"])
        memory = (spec["linux"].get("resources") or {}).get("memory") or {}
        check_memory(memory.get("limit", 0), self._cgroup_root)
        path = container_path(spec["linux"].get("cgroupsPath", ""), cid)
        spec["linux"]["cgroupsPath"] = path
        mounts = spec.setdefault("mounts", [])
        if not any(mount.get("destination") == "/dev/shm" for mount in mounts):
            mounts.append(_SHM)
        return Cgroup(path, self._cgroup_root)

    def _pid_namespace(self, request: agent_pb2.CreateContainerRequest, spec: dict[str, Any]) -> str:
        """The path of the process namespace that a container joins; "" for one of its own."""
        if other := (spec.get("annotations") or {}).pop(PID_ANNOTATION, None):
            return f"/proc/{self.container(other).process(other).pid}/ns/pid"
        return self._namespaces.pid if request.sandbox_pidns else ""

    def container(self, cid: str) -> Container:
        """The container of that id.

        Raises:
            NotFoundError: there is none.
        """
        with self._lock:
            found = self._containers.get(cid)
        if found is None:
            raise NotFoundError(f"no container {cid} in this sandbox")
        return found

    def remove_container(self, cid: str, timeout: float = 0) -> None:
        """Kill a container if it runs, and take away all that it had in the guest.

        One that is being created is removed by whoever creates it.

        Raises:
            NotFoundError: there is none.
        """
        with self._lock:
            if cid in self._busy and cid not in self._containers:
                self._unwanted.add(cid)
                return
        container = self.container(cid)
        with self._lock:
            if cid in self._busy or cid not in self._containers:
                raise NotFoundError(f"container {cid} is being removed")
            self._busy.add(cid)
        try:
            container.remove(timeout)
            self.oom.remove(cid)
            self.shares.release(cid)
            if cid == self._pid_owner:
                self._namespaces.drop_pid()
                self._pid_owner = ""
            self.storages.release(cid)
            with self._lock:
                del self._containers[cid]
        finally:
            with self._lock:
                self._busy.discard(cid)


def _set_network_parameters(linux: dict[str, Any]) -> None:
    """Set the network's sysctls here: crun refuses them to a container without a network of its own.

    The guest's network is the pod's.
    """
    sysctls: dict[str, str] = linux.get("sysctl") or {}
    network = {name: sysctls.pop(name) for name in list(sysctls) if name.startswith("net.")}
    system.set_network_parameters(network)


def check_id(text: str, what: str) -> str:
    """An id of a container or process that is safe as a file name.

    Raises:
        InvalidRequestError: it is not.
    """
    if not _ID.fullmatch(text):
        raise InvalidRequestError(
            f"{what} {text[:200]!r} is not valid: letters, digits, '_', '.' and '-', at most 128 of them"
        )
    return text
