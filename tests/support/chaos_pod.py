"""One round of chaos: a pod's whole life in a process that stands where its shim does, with one fault in it.

Real are the sandbox, its tasks, the broker and all that it makes on the host, and the processes that it
starts. The machine's program is `sleep`, and its agent answers over ttrpc from within this process: a round
takes a second.

Each thing that the life asks of somebody is a step: of the broker, of the machine, of the agent. A fault is
one thing that may happen at a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import itertools
import json
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
from google.protobuf.message import Message

from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor import registry
from kata_hypervisor.contract import VmExit, VmmProcess, VmSpec
from kata_hypervisor.errors import HypervisorError, LaunchError
from kata_hypervisor.host import Child
from kata_runtime.broker.cgroups import hierarchies
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.process import fork_broker
from kata_runtime.container.states import State
from kata_runtime.errors import RuntimeRoomError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.pod import sealing
from kata_runtime.pod.creation import CreateRequest
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.tasks import Tasks
from kata_runtime.resource.shares import RootfsMount
from kata_runtime.stdio.files import StdioPaths
from pod_bed import AgentDouble, MachineDouble, settle

STUCK = 60.0
"""Seconds after which an operation counts as stuck; no fault takes more than SHORT."""
PATIENCE, SHORT = 5, 0.3
"""Seconds of patience with an agent that stands still, and with a broker that does."""

EXHAUSTED = {
    "disk is full": os.strerror(errno.ENOSPC),
    "no descriptors": os.strerror(errno.EMFILE),
    "no memory": os.strerror(errno.ENOMEM),
    "no processes": os.strerror(errno.EAGAIN),
}
"""What the host has no more of from a step of the broker's on, and the words that an error has for it."""

FAULTS: dict[str, tuple[str, ...]] = {
    "broker": (
        *("fails", "stands still", "is killed", "caller goes", "vmm is killed", "shim is killed"),
        *EXHAUSTED,
    ),
    "agent": ("fails", "stands still", "caller goes", "vmm is killed", "helper is killed", "shim is killed"),
    "machine": ("fails", "caller goes", "broker is killed", "vmm is killed", "shim is killed"),
}
"""What may happen at a step, by whose it is."""

CLEAN = (RuntimeRoomError, RpcError, HypervisorError)
"""What may be answered when something has failed: errors that were raised on purpose."""


@dataclass(frozen=True)
class Step:
    """The nth time that something is asked of somebody in an operation."""

    operation: str
    side: str
    name: str
    nth: int

    def __str__(self) -> str:
        return f"{self.operation}: {self.side} {self.name} #{self.nth}"


@dataclass
class Report:
    """What a round has seen. steps: all, in order. errors: by operation. violations: what must not be."""

    steps: list[Step] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    struck: bool = False
    left: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        fields = json.loads(text)
        return cls(**fields | {"steps": [Step(**one) for one in fields["steps"]]})


class Machine(MachineDouble):
    """A machine whose two processes are real, started by the broker; its end is theirs."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.agent)
        self._life = life
        self.children: dict[str, Child] = {}
        self._watch: list[asyncio.Task[None]] = []

    async def prepare(self, spec: VmSpec) -> None:
        await self._life.reach("machine", "prepare")
        for name in ("virtiofsd", "qemu"):
            child = await self._life.broker.spawn(name, ["/bin/sleep", "1000"], fds={})
            self.children[name] = child
            self._watch.append(asyncio.create_task(self._follow(name, child)))

    async def _follow(self, name: str, child: Child) -> None:
        status = await child.wait()
        self.end(f"{name} {status}")
        await self.hang_up()

    async def run(self) -> None:
        await self._life.reach("machine", "run")
        if self._exit.done():
            raise LaunchError(self._exit.result().reason)

    async def stop(self) -> None:
        self.end("it was stopped", requested=True)
        for child in self.children.values():
            await child.kill()
        for child in self.children.values():
            await child.wait()
        await asyncio.gather(*self._watch)
        await self.hang_up()

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._exit)

    @property
    def processes(self) -> tuple[VmmProcess, ...]:
        return tuple(VmmProcess("vmm", child) for name, child in self.children.items() if name == "qemu")


class Agent(AgentDouble):
    """The agent: SIGKILL ends a process, and each call is a step."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    def _method(self, name: str) -> Callable[[Message], Any]:
        answer = super()._method(name)
        if name in ("wait_process", "get_oom_event", "check"):
            return answer  # they wait for what happens otherwise

        async def reached(request: Any) -> Message:
            await self._life.reach("agent", name)
            if name == "signal_process" and request.signal == signal.SIGKILL:
                self.end(request.exec_id or request.container_id, 137)
            response: Message = await answer(request)
            return response

        return reached


class Requests:
    """The broker as the pod sees it: each request is a step."""

    def __init__(self, life: Life, broker: Broker) -> None:
        object.__setattr__(self, "_life", life)
        object.__setattr__(self, "_broker", broker)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._broker, name)
        if not inspect.iscoroutinefunction(found) or name in ("close", "bundle_gone"):
            return found

        async def reached(*arguments: Any, **named: Any) -> Any:
            await self._life.reach("broker", name)
            return await found(*arguments, **named)

        return reached

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._broker, name, value)


class Life:
    """A pod's life, with one fault at one step of it, or without."""

    def __init__(self, root: Path, step: Step | None, fault: str) -> None:
        self.root = root
        self.step, self.fault = step, fault
        self.report = Report()
        self.agent = Agent(self)
        self.events: list[Message] = []
        self.identity = SandboxIdentity("/run/chaos.sock", "chaos", root.name, socket_root=str(root))
        self.broker: Broker
        self._operation = "start of the shim"
        self._caller: asyncio.Task[Any] | None = None
        self._counts: dict[tuple[str, str, str], int] = {}
        self._held: set[int] = set()

    # -- faults --------------------------------------------------------------------------------------------

    @property
    def marker(self) -> str:
        """What an error must say that is a consequence of the fault; empty where nothing is said."""
        assert self.step is not None
        return {
            "fails": f"injected into {self.step.name}",
            "stands still": "no answer" if self.step.side == "agent" else "did not answer",
            "is killed": "broker",
            "broker is killed": "broker",
            "vmm is killed": "qemu killed",
            "helper is killed": "virtiofsd killed",
            **EXHAUSTED,
        }.get(self.fault, "")

    async def reach(self, side: str, name: str) -> None:
        """Somebody is asked for something: let happen what is to happen here."""
        key = (self._operation, side, name)
        nth = self._counts[key] = self._counts.get(key, 0) + 1
        step = Step(*key, nth)
        self.report.steps.append(step)
        if step == self.step and not self.report.struck:
            self.report.struck = True
            await self._strike(side, name)

    async def _strike(self, side: str, name: str) -> None:
        match self.fault:
            case "fails":
                sentence = f"injected into {name}"
                raise {
                    "broker": RequestFailedError(sentence, 5),
                    "agent": RpcError(Code.INTERNAL, sentence),
                    "machine": LaunchError(sentence),
                }[side]
            case "stands still" if side == "broker":
                self.broker.patience = SHORT
                self._stop(self.broker.pid)
            case "stands still":
                await anyio.sleep_forever()
            case "is killed" | "broker is killed":
                os.kill(self.broker.pid, signal.SIGKILL)
            case "vmm is killed" | "helper is killed":
                child = self.machine.children.get("qemu" if self.fault == "vmm is killed" else "virtiofsd")
                if child is not None:
                    os.kill(child.pid, signal.SIGKILL)
                    if side == "agent":
                        await anyio.sleep_forever()  # it does not answer any more
            case "caller goes":
                if self._caller is not None:
                    self._caller.cancel()
            case "shim is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "disk is full":
                fill(self.root)
            case "no descriptors":
                used = max(int(name) for name in os.listdir(f"/proc/{self.broker.pid}/fd"))
                _limit(self.broker.pid, resource.RLIMIT_NOFILE, used + 1)
            case "no processes":
                forbid_forks(self.root.name, self.broker.pid)
            case "no memory":
                pages = int(Path(f"/proc/{self.broker.pid}/statm").read_text().split()[0])
                _limit(self.broker.pid, resource.RLIMIT_AS, pages * resource.getpagesize())

    def _stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._held.add(pid)

    def let_go(self) -> None:
        """Let who stood still go on."""
        for pid in self._held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._held.clear()

    # -- containerd ----------------------------------------------------------------------------------------

    async def ask(self, operation: str, work: Awaitable[Any]) -> bool:
        """One request of containerd's: whether it was done. It ends, and fails in words that tell why."""
        self._operation = operation
        struck = self.report.struck
        self._caller = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({self._caller}, timeout=STUCK)
        if not done:
            self.report.violations.append(f"{operation} is stuck")
            self._caller.cancel()
            return False
        self._operation = f"after {operation}"
        if self._caller.cancelled():
            if self.fault != "caller goes":
                self.report.violations.append(f"{operation} was cancelled by nobody")
            return False
        if (error := self._caller.exception()) is None:
            return True
        self.report.errors[operation] = f"{type(error).__name__}: {error}"
        if not isinstance(error, CLEAN):
            self.report.violations.append(f"{operation} failed by accident: {error!r}")
        elif self.step is None:
            self.report.violations.append(f"{operation} failed without a fault: {error}")
        elif self.report.struck and not struck and self.marker and self.marker not in str(error):
            self.report.violations.append(f"{operation} does not say that {self.marker!r}: {error}")
        return False

    async def live(self) -> None:
        """Create, run, and end two containers, as containerd asks for it."""
        tasks = self.tasks
        if await self.ask("create", tasks.create(self._request("web"))):
            await self._run()
        for name in ("app", "web"):
            await self._end(name)
        self._operation = "shutdown"
        await self._shut_down()

    async def _run(self) -> None:
        tasks = self.tasks
        if not await self.ask("start", tasks.start("web", "")):
            return
        process = {"args": ["true"], "cwd": "/"}
        if await self.ask("exec", tasks.exec("web", "e1", process, StdioPaths())):
            await self.ask("start exec", tasks.start("web", "e1"))
            self.agent.end("e1", 3)  # also where nobody waits for the start any more
            if await self.ask("wait exec", tasks.wait("web", "e1")):
                await self.ask("delete exec", tasks.delete("web", "e1"))
        if await self.ask("create app", tasks.create(self._request("app"))):
            await self.ask("start app", tasks.start("app", ""))
        if await self.ask("pause", tasks.pause("web")):
            await self.ask("resume", tasks.resume("web"))
        await self.ask("update", tasks.update("web", {"pids": {"limit": 7}}))
        await self.ask("stats", tasks.stats("web"))

    async def _end(self, name: str) -> None:
        try:
            known = self.tasks.container(name).init.state
        except RuntimeRoomError:
            return
        if known not in (State.STOPPED, State.DELETED):
            for again in ("", " again"):
                if await self.ask(f"kill {name}{again}", self.tasks.kill(name, "", 9, everyone=True)):
                    break
        await self.ask(f"wait {name}", self.tasks.wait(name, ""))
        if not await self.ask(f"delete {name}", self.tasks.delete(name, "")):
            await self.ask(f"delete {name} again", self.tasks.delete(name, ""))

    def _request(self, name: str) -> CreateRequest:
        root = RootfsMount("bind", str(self.root / "layer"), ("rbind", "rw"))
        stdio = StdioPaths("", str(self._bundle(name) / "out-stdout"), "")
        return CreateRequest(
            name, str(self._bundle(name)), (root,), stdio, str(self.root / "configuration.toml")
        )

    def _bundle(self, name: str) -> Path:
        return self.root / "state" / "io.containerd.runtime.v2.task" / "chaos" / name

    def _write_bundle(self, name: str, kind: str) -> None:
        """What containerd writes: what it cannot write, it does not ask for."""
        bundle = self._bundle(name)
        (bundle / "rootfs").mkdir(parents=True)
        data = self.root / "data"
        data.mkdir(exist_ok=True)
        spec = {
            "process": {"args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/data", "type": "bind", "source": str(data), "options": ["rbind", "rw"]}
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("network", "pid", "ipc", "uts", "mount")],
                "cgroupsPath": f"/{self.root.name}/{name}",
            },
            "annotations": {
                "io.kubernetes.cri.container-type": kind,
                "io.kubernetes.cri.sandbox-id": self.identity.id,
            },
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        os.mkfifo(bundle / "out-stdout", 0o700)
        (self.root / "layer").mkdir(exist_ok=True)

    def _configure(self) -> None:
        program = self.root / "program"
        program.write_bytes(b"x")
        program.chmod(0o755)
        (self.root / "configuration.toml").write_text(
            f'[hypervisor.qemu]\npath = "{program}"\nkernel = "{program}"\nimage = "{program}"\n'
            f'virtio_fs_daemon = "{program}"\naccelerator = "tcg"\n'
            f"[agent.kata]\ncreate_container_timeout = {PATIENCE}\n"
        )

    # -- the shim ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be the shim, from its start to its end."""
        self._configure()
        for name, kind in (("web", "sandbox"), ("app", "container")):
            self._write_bundle(name, kind)
        before = open_files()
        channel, pid = fork_broker(self.identity, str(self._bundle("web")))
        with stand_ins(self):
            async with anyio.create_task_group() as group:
                self.broker = Broker(channel, pid)
                requests: Any = Requests(self, self.broker)
                self.machine = Machine(self)
                self.sandbox = Sandbox(
                    self.identity, requests, group, on_end=self._on_end, on_oom=lambda _: None
                )
                self.tasks = Tasks(self.sandbox, requests, group, self.events.append)
                group.start_soon(self._watch_broker)
                await self.live()
                group.cancel_scope.cancel()
        await settle()
        self.report.violations += check_events(self.events)
        if opened := open_files() - before:
            self.report.violations.append(f"still open in the shim: {sorted(opened)}")
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            self.report.violations.append(f"still running in the shim: {tasks}")

    def _on_end(self, reason: str) -> None:
        self.tasks.end_all(reason)

    async def _watch_broker(self) -> None:
        """As in `shim.server`."""
        await self.broker.lost.wait()
        await self.sandbox.fail(self.broker.fault)

    async def _shut_down(self) -> None:
        async def shut_down() -> None:
            """As `shim.server`, after a Shutdown that is to be now."""
            self.tasks.end_all("containerd shut the shim down")
            await self.sandbox.stop("the shim was shut down")
            self.report.left = await self.broker.close()

        await self.ask("shutdown", shut_down())


def fill(directory: Path) -> None:
    """Leave no byte and no inode on a file system."""
    with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (directory / f"filler-{number}").touch()


def forbid_forks(name: str, pid: int) -> None:
    """Let no process begin below the cgroup of this name, where the pod's is; and put one in there."""
    for hierarchy in hierarchies():
        group = Path(hierarchy.mountpoint, name)
        if hierarchy.version == 2 and "pids" in Path(hierarchy.mountpoint, "cgroup.controllers").read_text():
            Path(hierarchy.mountpoint, "cgroup.subtree_control").write_text("+pids")
        elif "pids" not in hierarchy.controllers:
            continue
        alone = group / "early"  # where the broker may still be: version 2 has processes in leaves only
        alone.mkdir(parents=True, exist_ok=True)
        (group / "pids.max").write_text("0")
        if f"/{name}/" not in Path(f"/proc/{pid}/cgroup").read_text():
            (alone / "cgroup.procs").write_text(str(pid))
        return
    raise RuntimeError("no hierarchy of this host limits processes")


def forget_forks(name: str) -> None:
    """Undo `forbid_forks`, when the processes are gone."""
    for hierarchy in hierarchies():
        for group in (Path(hierarchy.mountpoint, name, "early"), Path(hierarchy.mountpoint, name)):
            if (group.parent / "pids.max").exists() or (group / "pids.max").exists():
                with contextlib.suppress(FileNotFoundError):
                    group.rmdir()


def _limit(pid: int, which: int, value: int) -> None:
    resource.prlimit(pid, which, (value, resource.prlimit(pid, which)[1]))


@contextlib.contextmanager
def stand_ins(life: Life) -> Iterator[None]:
    """This process is not sealed, and the driver is the machine of this round."""

    async def nothing() -> None:
        return None

    async def not_sealed(*_: object) -> sealing.Sealed:
        return sealing.Sealed("not sealed: a round of chaos", False)

    places: tuple[tuple[Any, str, Any], ...] = (
        (sealing, "get_ready", nothing),
        (sealing, "seal", not_sealed),
        (registry, "create", lambda *_: life.machine),
    )
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def open_files() -> set[tuple[str, str]]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return {(name, target) for name, target in found if not target.startswith("/proc/")}


def check_events(events: list[Message]) -> list[str]:
    """Each process that has started has one exit, after its start and before its deletion."""
    wrong = []
    topics: dict[str, list[str]] = {}
    for event in events:
        name = event.DESCRIPTOR.name
        made_by = getattr(event, "exec_id", "") or getattr(event, "id", "")
        container = getattr(event, "container_id", "")
        who = container if name in ("TaskCreate", "TaskStart", "TaskPaused", "TaskResumed") else made_by
        topics.setdefault(who or container, []).append(name)
    for who, names in topics.items():
        started = [name for name in names if name in ("TaskStart", "TaskExecStarted")]
        exits = names.count("TaskExit")
        if exits > 1 or (started and exits != 1):
            wrong.append(f"{who} has {exits} exits: {names}")
        order = ["TaskCreate", "TaskExecAdded", "TaskStart", "TaskExecStarted", "TaskExit", "TaskDelete"]
        known = [order.index(name) for name in names if name in order]
        if known != sorted(known):
            wrong.append(f"the events of {who} are out of order: {names}")
    return wrong


def play(root: Path, step: Step | None, fault: str) -> Report:
    """One round in this process, which is used up by it."""
    life = Life(root, step, fault)
    logging.getLogger().addHandler(logging.NullHandler())  # what the shim logs is said in its errors too
    logging.getLogger().setLevel(logging.CRITICAL)

    async def run() -> None:
        with anyio.fail_after(10 * STUCK):
            await life.run()

    try:
        anyio.run(run)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the round's result
        life.report.violations.append(f"the shim ended by {error!r}")
    finally:
        life.let_go()
    return life.report
