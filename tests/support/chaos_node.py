"""One round of chaos with the real containerd: a container's life by ctr, and one fault during one operation.

A fault strikes at a moment of the operation: a share of the time that the operation took without one.
What must be true afterwards is asked of containerd, of who listens to its events, and of the host.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/quickstart"))

import busybox_image
import unikernel
import unikernel_node
from node import FOREVER, RUNTIME, Client, Events, Node
from unikernel_description import described
from unikernel_image import BINARY, write_image

HOLD = 1.0
"""Seconds for which who is made to stand still does; no client of theirs gives up within them."""

OPERATIONS = ("start", "exec", "kill", "delete")

KILLED = {
    name: f"{name} is killed" for name in ("shim", "broker", "vmm", "virtiofsd", "containerd", "client")
}
STILL = {name: f"{name} stands still" for name in ("shim", "broker", "vmm", "containerd")}
DEADLY = {KILLED[name] for name in ("shim", "broker", "vmm", "virtiofsd")}
"""After these the container has ended."""
LOST = {KILLED["containerd"], KILLED["client"]}
"""After these what was asked for may have been done or not: who asked does it again."""

FORGETFUL = {KILLED["containerd"], KILLED["shim"]}
"""After these containerd may not know that an exit was told already."""

TOPICS = ("create", "start", "exit", "delete"), ("exec-added", "exec-started", "exit")
"""What is told of a container's first process and of an exec, in this order, each at most once."""

Told = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Machine:
    """What runs in a round. processes: beside shim, broker, containerd and the client, by their names."""

    name: str
    image: str
    command: tuple[str, ...]
    options: tuple[str, ...]
    processes: dict[str, str]
    operations: tuple[str, ...] = ("start", "kill", "delete")

    @property
    def faults(self) -> list[str]:
        """What may happen to it."""
        there = {"shim", "broker", "containerd", "client", *self.processes}
        return [fault for faults in (KILLED, STILL) for name, fault in faults.items() if name in there]


def machines(node: Node, directory: Path) -> list[Machine]:
    """All that this host can run: Linux in QEMU, a unikernel in QEMU, one in the shim."""
    found = [
        Machine(
            "linux", busybox_image.NAME, FOREVER, (), {"vmm": "qemu", "virtiofsd": "virtiofsd"}, OPERATIONS
        )
    ]
    qemu = configured(node, "qemu", f'{unikernel_node.TABLE}accelerator = "tcg"\nshared_fs = "none"\n')
    bare = json.dumps(described(binary=BINARY, hypervisor="qemu")).encode()
    image = add_image(node, "bare", unikernel.build_bare(directory), {"urunc.json": bare})
    options = (*qemu, "--memory-limit", str(64 << 20))
    found.append(Machine("unikernel in qemu", image, ("spin",), options, {"vmm": "qemu"}))
    if os.path.exists("/dev/kvm"):
        image = add_image(node, "solo5", unikernel.build_unikernel(directory), {})
        options = configured(node, "dragonball", unikernel_node.TABLE)
        found.append(Machine("unikernel in the shim", image, ("poll", str(3600 * 10**9)), options, {}))
    return found


def configured(node: Node, name: str, table: str) -> tuple[str, ...]:
    """The options of a container that has this configuration."""
    path = node.root / f"chaos-{name}.toml"
    path.write_text(unikernel_node.CONFIGURATION.format(name=name, table=table), encoding="utf-8")
    return "--runtime-config-path", str(path)


def add_image(node: Node, name: str, program: Path, files: dict[str, bytes]) -> str:
    archive, reference = node.root / "image.tar", f"localhost/{name}:1"
    write_image(archive, program, reference, files)
    node.ctr("image", "import", archive)
    archive.unlink()
    return reference


@dataclass(frozen=True)
class Plan:
    """A round: a fault of an operation of a machine; none with an empty `fault`. moment: 0 to 1."""

    machine: Machine
    operation: str = ""
    fault: str = ""
    moment: float = 0.0

    def __str__(self) -> str:
        return f"{self.machine.name}: {self.operation}: {self.fault} at {self.moment:.0%}"


def matrix(found: Iterable[Machine], draw: random.Random) -> list[Plan]:
    """Every fault of every operation, each at a moment that is drawn."""
    return [
        Plan(one, operation, fault, round(draw.random(), 2))
        for one in found
        for operation in one.operations
        for fault in one.faults
    ]


@dataclass
class Seen:
    """What a round has seen. took: seconds of each operation. errors: what ctr said, by operation."""

    took: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    struck: bool = False


class Round:
    """A container's life with a fault in it. usual: seconds that each operation takes without one."""

    def __init__(self, node: Node, plan: Plan, usual: dict[str, float]) -> None:
        self.node, self.plan, self.usual = node, plan, usual
        self.seen = Seen()
        self.container = node.new_id()
        self._listeners: list[Events] = []
        self._stack = ExitStack()

    def play(self) -> Seen:
        """All of it, until nothing is left."""
        before = self.node.leftovers()
        with self._stack:
            self._listen()
            for operation in self.plan.machine.operations:
                self._do(operation)
                if operation == "kill" and self.seen.struck and self.plan.fault in LOST:
                    self.node.ctr("task", "kill", "--signal", "KILL", self.container, check=False)
                if self._status() != "RUNNING" and operation != "kill":
                    break
            self._clear()
            self.seen.violations += check_events(self._told(), self._whole, self.plan.fault in FORGETFUL)
        self.seen.violations += [f"left on the host: {line}" for line in before.settle()]
        return self.seen

    @property
    def _whole(self) -> bool:
        """Whether somebody has listened to all events."""
        return not self.seen.struck or self.plan.fault != KILLED["containerd"]

    def _listen(self) -> None:
        self._listeners.append(self._stack.enter_context(Events(self.node)))

    def _told(self) -> list[Told]:
        return [event for one in self._listeners for event in one.of(self.container)]

    # -- operations ----------------------------------------------------------------------------------------

    def _command(self, operation: str) -> list[str]:
        machine, container = self.plan.machine, self.container
        arguments = {
            "start": (
                "run",
                "--detach",
                "--runtime",
                RUNTIME,
                *machine.options,
                machine.image,
                container,
                *machine.command,
            ),
            "exec": ("task", "exec", "--exec-id", "e", container, "sh", "-c", "echo in; exit 7"),
            "kill": ("task", "kill", "--signal", "KILL", container),
            "delete": ("task", "rm", container),
        }
        return self.node.command(*arguments[operation])

    def _do(self, operation: str) -> None:
        if operation == "delete":
            self._until(lambda: self._status() in (None, "STOPPED"), "the end of what was killed")
        begin = time.monotonic()
        with Client(self._command(operation)) as client:
            if operation == self.plan.operation:
                self._strike(client, begin + self.plan.moment * self.usual.get(operation, 0.0))
            try:
                status = client.wait()
            except subprocess.TimeoutExpired:
                self._wrong(f"{operation} is stuck")
                return
            output, errors = client.output, client.errors.strip()
        self.seen.took[operation] = time.monotonic() - begin
        if operation == self.plan.operation:
            self._recover()
        expected = 7 if operation == "exec" else 0
        if status != expected or (operation == "exec" and output != "in\n"):
            self.seen.errors[operation] = f"{status} {output!r} {errors}"
            self._judge(operation, errors)

    def _judge(self, operation: str, errors: str) -> None:
        """An operation has failed: because of the fault, and in words that tell so?"""
        if not self.seen.struck or self.plan.fault in STILL.values():
            self._wrong(f"{operation} failed, and nothing was wrong: {self.seen.errors[operation]}")
        elif self.plan.fault == KILLED["client"]:
            if not self._client_went(operation):
                self._wrong(f"{operation} failed, though only a client went: {self.seen.errors[operation]}")
        elif not errors:
            self._wrong(f"{operation} failed without a word: {self.seen.errors[operation]}")

    def _client_went(self, operation: str) -> bool:
        """Whether who asked for this was killed: it may have been done or not."""
        return (operation, KILLED["client"], True) == (self.plan.operation, self.plan.fault, self.seen.struck)

    def _wrong(self, sentence: str) -> None:
        self.seen.violations.append(sentence)

    def _status(self) -> str | None:
        return self.node.status(self.container)

    def _until(self, condition: Callable[[], object], what: str) -> bool:
        try:
            self.node.until(condition, what)
        except AssertionError as error:
            self._wrong(str(error))
            return False
        return True

    # -- the fault -----------------------------------------------------------------------------------------

    def _strike(self, client: Client, at: float) -> None:
        time.sleep(max(0.0, at - time.monotonic()))
        fault = self.plan.fault
        who = fault.partition(" ")[0]
        while not (pid := self._find(who, client)):
            if client.ended:
                return
            time.sleep(0.005)
        try:
            if fault == KILLED["containerd"]:
                self.node.containerd.stop(signal.SIGKILL)
            elif fault in KILLED.values():
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(HOLD)
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return
        self.seen.struck = True

    def _find(self, who: str, client: Client) -> int:
        """A process by its name in a fault; 0 where it does not live."""
        if who == "client":
            return 0 if client.ended else client.pid
        if who == "containerd":
            return self.node.containerd.pid
        bundle = self.node.root / "state/io.containerd.runtime.v2.task" / self.node.namespace / self.container
        try:
            shim = int((bundle / "shim.pid").read_text())
            if who == "shim":
                return shim if _name(shim) == "kata-shim" else 0
            broker = next((pid for pid in _children(shim) if _name(pid) == "kata-broker"), 0)
            if who == "broker":
                return broker
            name = self.plan.machine.processes[who]
            return next((pid for pid in _children(broker) if _name(pid).startswith(name)), 0)
        except (OSError, ValueError):
            return 0

    def _recover(self) -> None:
        """Everything that is no pod's is there again, and containerd knows how the pod is."""
        if self.plan.fault == KILLED["containerd"] and self.seen.struck:
            self.node.containerd.start()
            self._listen()
        if self.plan.fault in DEADLY and self.seen.struck:
            self._until(lambda: self._status() in (None, "STOPPED"), "containerd knows of its end")

    # -- the end -------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Delete what there is, as a person would; it works at the first try."""
        commands = ("task", "rm", "--force"), ("container", "rm")
        for command in commands:
            try:
                done = self.node.ctr(*command, self.container, check=False)
            except subprocess.TimeoutExpired:
                self._wrong(f"{' '.join(command)} is stuck")
                continue
            if done.returncode and "not found" not in done.stderr and "exit code" not in done.stderr:
                self._wrong(f"{' '.join(command)}: {done.stderr.strip()}")
        self._until(lambda: self._status() is None, "containerd has no such task")
        if self.container in self.node.ctr("container", "ls", "--quiet").stdout.split():
            self._wrong("containerd has the container still")
        self._until(lambda: not self._held(), f"containerd lets go of {self._held()}")

    def _held(self) -> list[str]:
        """What containerd has open of the container."""
        directory = Path(f"/proc/{self.node.containerd.pid}/fd")
        return [target for target in map(_link, directory.iterdir()) if self.container in target]


def check_events(told: Collection[Told], whole: bool, repeated: bool = False) -> list[str]:
    """A sentence for each thing that is wrong with a container's events.

    whole: whether none was missed. repeated: whether containerd tells an end, perhaps
    once more, because it has lost the shim; source: runtime/v2/shim.go, cleanupAfterDeadShim.
    """
    names = {event["id"] for topic, event in told if topic == "exit"}
    container = next(({event["container_id"]} for _, event in told), set())
    wrong = []
    for name in sorted(names | container | {event["exec_id"] for _, event in told if "exec_id" in event}):
        order = TOPICS[name not in container]
        of = [topic for topic, event in told if topic in order and _concerned(event, container) == name]
        if repeated and name in container and max(map(of.count, of), default=0) == 2:
            of = list(dict.fromkeys(of))
        if sorted(set(of), key=order.index) != of:
            wrong.append(f"the events of {name} come twice or out of order: {of}")
        if whole and {"start", "exec-started"} & {*of} and "exit" not in of:
            wrong.append(f"{name} has no exit: {of}")
    return wrong


def _concerned(event: dict[str, Any], container: Collection[str]) -> str:
    """The process that an event is about: "exec_id" of an exec's begin, "id" of an exit, or the container."""
    return str(event.get("exec_id") or event.get("id") or next(iter(container)))


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""
