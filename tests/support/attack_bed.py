"""A host to attack: containerd's directories, a pod's bundle, a neighbour's, and files that nobody may touch.

The attacker is a process that plays an owned shim: it has the socket to its broker and sends what it likes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed, Shim, make_bed, wait_for_end
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.syscalls import numbers
from kata_runtime.broker import messages

IS_ROOT = os.geteuid() == 0
POLICY = "attacked [base]"
_OURS = "io.kubernetes.cri.sandbox-id"
_TASKS = "io.containerd.runtime.v2.task"


class World:
    """What is on the host. bed: the pod's sandbox, whose bundle lies in containerd's state directory."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.shims: list[Shim] = []
        self.state, self.lib = bed.root / "run", bed.root / "lib"
        self.snapshots = self.lib / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
        for name in ("1", "2", "9"):
            (self.snapshots / name / "fs").mkdir(parents=True)
        (self.snapshots / "2" / "work").mkdir()
        (self.snapshots / "1" / "fs" / "layer").touch()
        (self.snapshots / "9" / "fs" / "empty").mkdir()
        self.volume = bed.data
        self.host = bed.root / "host"
        for name in ("cron.d", "readonly", "only"):
            (self.host / name).mkdir(parents=True)
        for name in ("secret", "readonly/file", "only/file", "cron.d/job"):
            (self.host / name).write_text(f"precious {name}")
            (self.host / name).chmod(0o600)
        os.mkfifo(self.host / "fifo")
        os.mkfifo(self.host / "open-stdin")
        os.chmod(self.host / "open-stdin", 0o622)
        self.api = socket.socket(socket.AF_UNIX)
        self.api.bind(str(self.host / "api.sock"))
        self.api.listen()
        self.api.setblocking(False)
        sandbox = bed.identity.id
        mounts = [
            {"type": "bind", "source": str(self.volume), "options": ["rbind", "rw"]},
            {"type": "bind", "source": str(self.volume / "below"), "options": ["rbind", "rw"]},
            {"type": "bind", "source": str(self.host / "readonly"), "options": ["rbind", "ro"]},
            {"type": "bind", "source": str(self.host / "only"), "options": ["bind", "ro"]},
            {"type": "tmpfs", "source": str(self.host), "options": []},
        ]
        (self.volume / "below").mkdir()
        bed.bundle = self.add_bundle("pod", sandbox, mounts=mounts)
        self.neighbour = self.add_bundle("neighbour", "another", mounts=[{"type": "bind", "source": "/"}])
        self.sandbox = self.state / "io.containerd.sandbox.controller.v1.shim" / "k8s.io" / "another"
        self.sandbox.mkdir(parents=True)
        os.mkfifo(self.sandbox / "log")
        (self.state / "logs" / "other").mkdir(parents=True)
        for name in ("other/its.log", "its.log"):
            (self.state / "logs" / name).write_text("another's")

    def add_bundle(self, name: str, sandbox: str, **spec: Any) -> Path:
        """A bundle as containerd makes them; `sandbox` is what the annotations say."""
        bundle = self.state / _TASKS / "k8s.io" / name
        (bundle / "rootfs").mkdir(parents=True)
        work = self.lib / _TASKS / "k8s.io" / name
        work.mkdir(parents=True)
        (bundle / "work").symlink_to(work)
        os.mkfifo(bundle / "log")
        os.mkfifo(bundle / "app-stdout", 0o700)  # as containerd's clients name theirs
        content = {"root": {"path": "rootfs"}, "annotations": {_OURS: sandbox}, **spec}
        (bundle / "config.json").write_text(json.dumps(content))
        return bundle

    def write_as_guest(self) -> None:
        """What a container may have put into its own files, by the time that the shim is owned."""
        for place in (self.volume, self.snapshots / "2" / "fs"):
            (place / "out").symlink_to(self.host)
            (place / "root").symlink_to("/")
            (place / "secret").symlink_to(self.host / "secret")
            os.mkfifo(place / "fifo")
            (place / "image").write_bytes(b"\xe2\xe1\xf5\xe0" * 1024)
            content = {"annotations": {_OURS: self.bed.identity.id}, "mounts": [{"source": "/"}]}
            (place / "config.json").write_text(json.dumps(content))
            (place / "sandbox").write_text(self.bed.identity.id)
            if IS_ROOT:
                os.mknod(place / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
                os.mknod(place / "kmem", stat.S_IFCHR | 0o666, os.makedev(1, 1))
        (self.volume / "below").rmdir()
        (self.volume / "below").symlink_to(self.host)

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Everything that no request may change: the host's files, the neighbour's, the guest's own."""
        found: dict[str, tuple[object, ...]] = {}
        for top in (self.host, self.neighbour, self.volume, self.snapshots, self.state / "logs" / "other"):
            for directory, names, files in os.walk(top):
                for name in [".", *names, *files]:
                    path = os.path.join(directory, name)
                    facts = os.lstat(path)
                    content = hashlib.sha256(_content(path, facts.st_mode)).hexdigest()
                    found[path] = (facts.st_mode, facts.st_uid, facts.st_nlink, facts.st_rdev, content)
        return found

    def api_was_asked(self) -> bool:
        """Whether anybody has connected to the socket of the host."""
        try:
            self.api.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def _target(descriptor: int) -> str:
    """Where a descriptor leads: a path, or an inode where the file has a mount of its own that is nowhere."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    return f"inode {os.fstat(descriptor).st_ino}" if path == "/" else path


def _content(path: str, mode: int) -> bytes:
    if stat.S_ISREG(mode):
        return Path(path).read_bytes()
    return os.readlink(path).encode() if stat.S_ISLNK(mode) else b""


@contextmanager
def make_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A host, and afterwards nothing of it."""
    with make_bed(monkeypatch) as bed:
        world = World(bed)
        try:
            yield world
        finally:
            world.api.close()
            for shim in world.shims:
                end(shim)


class Owned:
    """The attacker's side: requests over the socket to the broker, and what was gained by them."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel

    def ask(self, op: str, descriptors: Sequence[int] = (), **arguments: object) -> dict[str, Any]:
        """The broker's answer; "gained": where each descriptor leads that came with it."""
        messages.send(self.channel, messages.encode({"id": 1, "op": op, **arguments}), descriptors)
        while True:
            message, received = messages.receive(self.channel)
            if "id" in message:
                gained = [_target(fd) for fd in received]
                messages.close_all(received)
                return {**message, "gained": gained}

    def learn(self, world: World) -> None:
        """What an honest shim asks before the seal: its specification, and its first container's files."""
        bed = world.bed
        assert "result" in self.ask("open_spec", bundle=str(bed.bundle))
        layers = [f"lowerdir={world.snapshots}/1/fs", f"upperdir={world.snapshots}/2/fs"]
        options = [*layers, f"workdir={world.snapshots}/2/work"]
        # Without root it fails after it was learned.
        self.ask("mount", target=f"{bed.shared}/c/rootfs", mounts=[["overlay", "overlay", options]])
        volume = f"{bed.shared}/c/volume"
        self.ask("bind", source=str(world.volume), target=volume, readonly=False, recursive=True)
        assert "result" in self.ask("open_log", path=str(world.state / "logs" / "own.log"))
        assert "result" in self.ask("open_fifo", path=str(bed.bundle / "log"), mode="rw")
        assert "result" in self.ask("register_guest", address=f"{bed.directory}/guest.sock")

    def seal(self) -> None:
        """Announce it, install a filter that allows almost everything, and hand its listener over."""
        assert "result" in self.ask("announce_seal", mode="enforce", policy=POLICY, within=3600)
        allowed = tuple(name for name in numbers("x86_64") if name != "getpgid")
        code = compile_rules((Rule(allowed),), actions.NOTIFY).code
        listener = kernel.install(code, all_threads=True, listener=True)
        assert listener is not None
        assert "result" in self.ask("supervise", [listener])
        os.close(listener)


def play(
    world: World,
    act: Callable[[Owned], object],
    *,
    sealed: bool = True,
    before: Callable[[Owned], object] = lambda honest: None,
) -> tuple[Shim, list[str]]:
    """Start a pod, seal it, let the guest write, and let the attacker act; returns what was logged too.

    before: what the honest shim does besides.

    The shim waits afterwards, until the end of the world at the latest; see `end`.
    """
    log = os.open(world.bed.bundle / "log", os.O_RDWR | os.O_NONBLOCK)

    def whole(channel: socket.socket) -> object:
        attacker = Owned(channel)
        attacker.learn(world)
        before(attacker)
        if sealed:
            attacker.seal()
        world.write_as_guest()
        return act(attacker)

    try:
        shim = Shim(world.bed, whole, namespace=IS_ROOT)
        world.shims.append(shim)
        try:
            lines = os.read(log, 1 << 20).decode().splitlines()
        except BlockingIOError:
            lines = []
    finally:
        os.close(log)
    return shim, lines


def end(shim: Shim) -> None:
    """Kill the shim, if it still runs; its broker undoes everything."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        shim.kill()
    wait_for_end(shim.broker)


def mounts_of(pid: int | str) -> list[str]:
    """The mount points of a process."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines]


def host_mounts(world: World) -> list[str]:
    """The host's mount points, without those that other tests may make at the same time."""
    root, others = str(world.bed.root), ("/run/", "/tmp/", "/var/")
    return [mount for mount in mounts_of("self") if root in mount or not mount.startswith(others)]
