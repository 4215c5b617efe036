"""A pod without root or a VM: real are its sandbox and tasks; machine, agent and broker are doubles.

The agent is served over ttrpc, so that a connection which ends is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.abc
import pytest
from google.protobuf.message import Message

from kata_agent.client import AgentClient, Rpc
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.server import Handler, Server
from kata_agent.ttrpc.status import RpcError
from kata_hypervisor import registry
from kata_hypervisor.concurrency import uninterrupted
from kata_hypervisor.contract import Capabilities, Hypervisor, VmExit, Vmm, VmmProcess, VmSpec
from kata_hypervisor.host import ExitStatus
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.shared_source import SharedSource
from kata_runtime.identity import SandboxIdentity
from kata_runtime.pod import sealing
from kata_runtime.pod.creation import CreateRequest
from kata_runtime.pod.host_cpus import HostCpus
from kata_runtime.pod.room import Room
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.tasks import Tasks
from kata_runtime.stdio.files import StdioPaths

TYPE = "io.kubernetes.cri.container-type"
VMM_PID = 4242
INIT_PID = 4241


class Gate:
    """A point at which a double waits, for a test that wants to look: open unless it is closed."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self._open = anyio.Event()
        self._open.set()

    def close(self) -> None:
        """Let whoever comes wait."""
        self._open = anyio.Event()

    def open(self) -> None:
        """Let whoever waits go on."""
        self._open.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        self.reached.set()
        await self._open.wait()


def fixed_room(machine: Any = None, agent: Any = None) -> Room:
    """The room of a machine that keeps its size."""
    spec = VmSpec("pod", Path("/run/pod"), vcpus=1, memory_mib=256, kernel=Path("/k"))
    return Room(machine, agent, spec, "with static_sandbox_resource_mgmt")


def no_cpus() -> HostCpus:
    """The CPUs of the host of a pod whose virtual CPUs are kept on none."""
    broker: Any = None
    return HostCpus(broker, lambda: 1, pinning=False)


class AgentDouble:
    """The guest's agent: answers every method, remembers what it was asked, ends processes on demand."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Message]] = []
        self.failures: dict[str, RpcError] = {}
        self.gates: dict[str, Gate] = {}
        self.statuses: dict[str, int] = {}
        self._ends: dict[str, anyio.Event] = {}
        self._special = {"wait_process": self._wait_process, "get_oom_event": self._get_oom_event}

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """For a ttrpc server."""
        methods = {name: rpc for name, rpc in vars(AgentClient).items() if isinstance(rpc, Rpc)}
        return {
            (rpc.service, rpc.name): Handler(rpc.request, self._method(name)) for name, rpc in methods.items()
        }

    def _method(self, name: str) -> Callable[[Message], Any]:
        async def answer(request: Message) -> Message:
            self.calls.append((name, request))
            if name in self.gates:
                await self.gates[name].passed()
            if name in self.failures:
                raise self.failures[name]
            if name in self._special:
                return await self._special[name](request)
            rpc = vars(AgentClient)[name]
            response: Message = rpc.response()
            return response

        return answer

    async def _wait_process(self, request: Any) -> Message:
        await self._ends.setdefault(request.exec_id, anyio.Event()).wait()
        return agent_pb2.WaitProcessResponse(status=self.statuses[request.exec_id])

    async def _get_oom_event(self, request: Any) -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    def gate(self, name: str) -> Gate:
        """A closed gate in front of a method's answer."""
        gate = self.gates[name] = Gate()
        gate.close()
        return gate

    def end(self, guest_id: str, status: int) -> None:
        """Let a process exit."""
        self.statuses[guest_id] = status
        self._ends.setdefault(guest_id, anyio.Event()).set()

    def called(self, name: str) -> list[Any]:
        """The requests of one method."""
        return [request for called, request in self.calls if called == name]


class MachineDouble(Hypervisor):
    """A virtual machine in name only, whose agent is an AgentDouble. It ends once, by `stop` or `end`."""

    def __init__(self, agent: AgentDouble) -> None:
        self.capabilities = Capabilities(file_sharing=True)
        self.agent = agent
        self.steps: list[str] = []
        self.preparing = Gate()
        self.running = Gate()
        self.stopping = Gate()
        self.failure: Exception | None = None
        self._exit: asyncio.Future[VmExit] = asyncio.get_running_loop().create_future()
        self._serving: list[asyncio.Task[None]] = []

    async def prepare(self, spec: VmSpec) -> None:
        self.steps.append("prepare")
        await self.preparing.passed()
        if self.failure is not None:
            raise self.failure

    async def run(self) -> None:
        self.steps.append("run")
        await self.running.passed()

    async def stop(self) -> None:
        self.steps.append("stop")
        await self.stopping.passed()
        self.end("it was stopped", requested=True)
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close every connection to the agent."""
        for one in self._serving:
            one.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def end(self, reason: str, *, requested: bool = False) -> None:
        """End the machine, for a reason."""
        if not self._exit.done():
            self._exit.set_result(VmExit(reason, "qemu", ExitStatus(signal=9), requested))

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._exit)

    async def pause(self) -> None:
        raise AssertionError("nobody pauses it")

    async def resume(self) -> None:
        raise AssertionError("nobody resumes it")

    async def verify_confinement(self) -> None:
        """It is confined as it must be."""

    @property
    def seal_features(self) -> frozenset[str]:
        return frozenset()

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        child: Any = SimpleNamespace(pid=VMM_PID)
        return (VmmProcess("vmm", child),)

    @property
    def stops(self) -> int:
        """How often it was stopped."""
        return self.steps.count("stop")

    @property
    def console_tail(self) -> str:
        return "console"

    @property
    def transport(self) -> Any:
        return self

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """A transport's: every connection is to the agent."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        server = Server(self.agent.handlers())
        self._serving.append(asyncio.create_task(server.serve_connection(theirs)))
        return ours, 1

    async def aclose(self) -> None:
        """A transport's."""


class BrokerDouble:
    """Remembers what is mounted and what exists."""

    def __init__(self) -> None:
        self.fault = ""
        self.mounted: list[str] = []
        self.made: list[str] = []
        self.shown: list[str] = []
        self.late: list[str] = []
        self.configured = True
        self.hooks: dict[str, list[str]] = {}
        self.ran: list[str] = []
        self.preparing = Gate()
        self.binding = Gate()

    async def late_interfaces(self) -> list[str]:
        return self.late

    async def learn_network(self, path: str | None, *, outside: bool) -> int:
        return INIT_PID

    async def network_state(self) -> tuple[list[str], bool]:
        return [], self.configured

    async def learn_hooks(self) -> list[str]:
        return list(self.hooks)

    async def run_hooks(self, kind: str) -> list[str]:
        self.ran.append(kind)
        return self.hooks[kind]

    async def prepare(self, cgroup: str | None, *, pinning: bool) -> str:
        await self.preparing.passed()
        return cgroup or ""

    async def take_user(self, base: int, count: int) -> int:
        return base

    async def read_spec(self, bundle: str) -> bytes:
        return Path(bundle, "config.json").read_bytes()

    async def make_directory(self, path: str) -> None:
        self.made.append(path)

    async def mount(self, target: str, mounts: list[Any]) -> None:
        self.mounted.append(target)

    async def bind(self, source: str, target: str, *, readonly: bool, recursive: bool = True) -> None:
        await self.binding.passed()
        try:
            os.stat(source)
        except OSError as error:
            raise RequestFailedError(f"cannot share {source}", error.errno or 0) from None
        self.mounted.append(target)
        self.made.append(target)

    async def find_memory(self, source: str) -> dict[str, Any] | None:
        return None

    async def share(
        self, source: str, *, readonly: bool, recursive: bool = True, readonly_below: bool = False
    ) -> SharedSource:
        place = f".volumes{source}"
        await self.bind(source, place, readonly=readonly, recursive=recursive)
        return SharedSource(place)

    async def unshare(self, place: str) -> None:
        await self.unmount(place)
        await self.remove(place)

    async def show_root(self, target: str) -> None:
        assert target in self.mounted
        self.shown.append(target)

    async def unmount(self, target: str) -> None:
        self.mounted.remove(target)

    async def remove(self, path: str) -> None:
        self.made.remove(path)

    async def open_fifo(self, path: str, mode: str) -> int:
        return os.open(path, {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[mode] | os.O_NONBLOCK)

    async def open_log(self, path: str) -> int:
        raise AssertionError("no test here logs to a file")

    async def settle_logs(self) -> None:
        raise AssertionError("no test here logs to a file")

    async def open_in_image(self, root: str, name: str, *, write: bool) -> int:
        raise RequestFailedError(f"cannot open {name} in the image: there is none")


class SuspendingBroker:
    """A broker of which every request takes a turn of the event loop, as one over a channel does."""

    def __init__(self, broker: BrokerDouble) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._broker, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def exchange(*arguments: Any, **named: Any) -> Any:
            await asyncio.sleep(0)
            return await found(*arguments, **named)

        return lambda *arguments, **named: uninterrupted(exchange(*arguments, **named))


class PodBed:
    """A sandbox and its tasks. events: what was published. reasons: of the sandbox's end, as reported."""

    def __init__(self, directory: Path, group: anyio.abc.TaskGroup) -> None:
        self.directory = directory
        self.group = group
        self.agent = AgentDouble()
        self.machine = MachineDouble(self.agent)
        self.machines_made = 0
        self.broker = BrokerDouble()
        self.events: list[Message] = []
        self.reasons: list[str] = []
        self.configuration = self._configure()
        identity = SandboxIdentity("/run/containerd.sock", "test", "pod")
        broker: Any = SuspendingBroker(self.broker)
        self.sandbox = Sandbox(identity, broker, group, on_end=self._on_end, on_oom=lambda _: None)
        self.tasks = Tasks(self.sandbox, broker, group, self.events.append)

    def _on_end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.tasks.end_all(reason)

    def _configure(self) -> Path:
        program = self.directory / "program"
        program.write_bytes(b"x")
        program.chmod(0o755)
        path = self.directory / "configuration.toml"
        path.write_text(
            f'[hypervisor.qemu]\npath = "{program}"\nkernel = "{program}"\nimage = "{program}"\n'
            f'virtio_fs_daemon = "{program}"\naccelerator = "tcg"\n'
        )
        return path

    def create_machine(self, *_: object) -> Vmm:
        """In place of the registry's."""
        self.machines_made += 1
        return self.machine

    def request(
        self, name: str = "web", *, annotations: Mapping[str, str] | None = None, **changes: Any
    ) -> CreateRequest:
        """A container to create, with a bundle of its own."""
        bundle = self.directory / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        spec = {
            "process": {"args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "network")]},
            "annotations": dict(annotations or {}),
        } | changes
        (bundle / "config.json").write_text(json.dumps(spec))
        return CreateRequest(name, str(bundle), (), StdioPaths(), str(self.configuration))

    async def started(self, name: str = "web") -> None:
        """Create and start a container."""
        await self.tasks.create(self.request(name))
        await self.tasks.start(name, "")

    def topics(self) -> list[str]:
        """The names of the events."""
        return [event.DESCRIPTOR.name for event in self.events]


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(50):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def pod_bed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    """Such a pod; this process is not sealed."""

    async def nothing() -> None:
        return None

    async def not_sealed(*_: object) -> sealing.Sealed:
        return sealing.Sealed("not sealed: a test", False)

    monkeypatch.setattr(sealing, "get_ready", nothing)
    monkeypatch.setattr(sealing, "seal", not_sealed)
    async with anyio.create_task_group() as group:
        bed = PodBed(directory, group)
        monkeypatch.setattr(registry, "create", bed.create_machine)
        yield bed
        await bed.sandbox.stop()
        group.cancel_scope.cancel()
