"""Who shares the host with a pod: a neighbour pod, whose broker and VMM are owned, and a local user."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attack_bed import IS_ROOT, Owned, World, end, make_world, play
from broker_bed import Bed, Shim, ask
from kata_agent import reserved_ports
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.qemu import command
from kata_runtime import syscalls
from kata_runtime.broker import claims, cleanup, pod_identity, rollback, sandbox_directory
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.pod_identity import PodIdentity
from kata_runtime.broker.rollback import RollbackJournal
from kata_runtime.identity import SandboxIdentity
from kata_runtime.shim.launcher import _listen

BASE = 1_900_000_000


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        yield made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[RollbackJournal]:
    directory = os.open(tmp_path, os.O_RDONLY)
    journal = RollbackJournal.create(directory, {"sandbox": "s"})
    yield journal
    journal.close()
    os.close(directory)


def another(world: World, name: str) -> SandboxIdentity:
    bed = world.bed.identity
    return SandboxIdentity(bed.address, bed.namespace, name, socket_root=bed.socket_root)


# -- a neighbour pod -----------------------------------------------------------------------------------------


def test_no_two_pods_have_one_user(world: World, journal: RollbackJournal) -> None:
    """Also where the range is small, and where a pod of the same name ends or lies about its key."""
    first, second = PodIdentity(another(world, "a"), journal), PodIdentity(another(world, "b"), journal)
    users = {first.take(BASE, 2), second.take(BASE, 2)}
    assert users == {BASE, BASE + 1}
    with pytest.raises(RequestFailedError, match="are taken by other pods"):
        PodIdentity(another(world, "c"), journal).take(BASE, 2)
    directory = Path(world.bed.directory).parent / pod_identity.DIRECTORY
    for path in directory.iterdir():
        claims.release(str(path), another(world, "c").key)
    assert len(list(directory.iterdir())) == 2
    for path in list(directory.iterdir()):
        claims.release(str(path), path.read_text())


@pytest.mark.skipif(not IS_ROOT, reason="mounts need root")
def test_a_full_state_directory_takes_no_user_for_ever(tmp_path: Path, journal: RollbackJournal) -> None:
    """Whoever fills /run has pods fail, and no longer than it is full: each failure would cost a user."""
    (place := tmp_path / "run").mkdir()
    syscalls.mount("none", str(place), "tmpfs", 0, "size=64k")
    identity = SandboxIdentity("/run/test.sock", "test", "sandbox")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kata_runtime.identity.STATE_ROOT", str(place))
            (place / "filler").write_bytes(bytes(64 << 10))
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    PodIdentity(identity, journal).take(BASE, 1)
            assert not journal.entries
            (place / "filler").unlink()
            assert PodIdentity(identity, journal).take(BASE, 1) == BASE
    finally:
        syscalls.unmount(str(place))


def test_a_snapshot_that_an_owned_shim_has_taken_first_is_given_to_nobody_else(world: World) -> None:
    """It is empty, and another pod's container is about to start on it: that one is told."""
    (world.snapshots / "5" / "fs").mkdir(parents=True)
    (world.snapshots / "5" / "work").mkdir()
    upper = f"{world.snapshots}/5"
    options = [f"lowerdir={world.snapshots}/1/fs", f"upperdir={upper}/fs", f"workdir={upper}/work"]
    neighbour = Bed(world.bed.root / "beside")
    neighbour.identity = another(world, "neighbour")

    def mount(channel: socket.socket, bed: Bed) -> str:
        answer = ask(channel, "mount", target=f"{bed.shared}/m", mounts=[["overlay", "overlay", options]])
        return str(answer.get("error", {}).get("message", ""))

    def start() -> tuple[Shim, str]:
        shim = Shim(neighbour, lambda channel: mount(channel, neighbour), namespace=IS_ROOT)
        return shim, shim.result

    attacker, _ = play(world, lambda attacker: mount(attacker.channel, world.bed))
    assert "another sandbox" not in attacker.result
    assert not (IS_ROOT and attacker.result)
    shim, said = start()
    assert "another sandbox has it mounted, and two that write to it would share their files" in said
    end(shim)
    end(attacker)
    shim, said = start()
    assert "another sandbox" not in said
    end(shim)
    assert not list(Path(world.bed.directory).parent.iterdir())


def test_a_sandbox_that_is_served_is_not_taken_over(world: World) -> None:
    shim, _ = play(world, lambda attacker: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleanup, "LOCK_TIMEOUT", 0.0)
        with pytest.raises(RequestFailedError, match="is in use: another shim serves this sandbox"):
            sandbox_directory._take(str(world.bed.directory))
    end(shim)


@pytest.mark.parametrize("address", ["/run/other.sock", "/run/test.sock/test"])
def test_a_pod_of_the_same_name_elsewhere_is_another(world: World, address: str) -> None:
    ours = world.bed.identity
    for namespace, name in (("test", "sandbox"), ("other", "sandbox"), ("test", "sandbox2")):
        theirs = SandboxIdentity(address, namespace, name)
        assert theirs.directory != ours.directory
        assert theirs.key != ours.key


# -- the rollback journal ------------------------------------------------------------------------------------


def poison(world: World, entries: list[dict[str, object]]) -> list[str]:
    """Let a cleanup find these entries; what it could not undo."""
    home = world.bed.root / "poisoned"
    (home / "shared").mkdir(parents=True)
    header = {"sandbox": "s", "bundle": str(world.bed.bundle), "socket": ""}
    lines = [header, *({"n": number, **entry} for number, entry in enumerate(entries, 1))]
    (home / rollback.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    directory = os.open(home, os.O_RDONLY)
    scope = PathScope(str(home / "shared"), -1, str(world.bed.bundle), -1)
    try:
        found = RollbackJournal.load(directory)
        assert found is not None
        return cleanup.roll_back(found, scope, {os.getpid()}, mounted=True)
    finally:
        os.close(directory)


def test_a_poisoned_journal_undoes_nothing_of_the_hosts(world: World) -> None:
    host, neighbour = world.host, world.neighbour
    paths = [str(host), f"{host}/secret", f"{neighbour}/rootfs", "/", f"{world.bed.bundle}/../neighbour/log"]
    before = world.snapshot()
    left = poison(world, [{"undo": kind, "path": path} for kind in ("remove", "unmount") for path in paths])
    assert len(left) == 2 * len(paths)
    assert all("is not below the sandbox's" in line for line in left)
    assert world.snapshot() == before


def test_a_pid_that_another_process_has_by_now_is_not_killed(world: World) -> None:
    ours = os.getpid()
    assert poison(world, [{"undo": "process", "pid": ours, "start": 1, "name": "qemu"}]) == []
    assert poison_again(world, [{"undo": "process", "pid": 2**22, "start": 1, "name": "x"}]) == []


def poison_again(world: World, entries: list[dict[str, object]]) -> list[str]:
    (world.bed.root / "poisoned").rename(world.bed.root / "poisoned before")
    return poison(world, entries)


# -- a local user --------------------------------------------------------------------------------------------

NOBODY = 65534
CLONE_NEWUSER = 0x10000000


def as_nobody(attempts: dict[str, Callable[[], object]]) -> list[str]:
    """Do each as an unprivileged user; the names of those that did not fail."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            gained = []
            for name, attempt in attempts.items():
                with contextlib.suppress(OSError):
                    attempt()
                    gained.append(name)
            os.write(writer, json.dumps(gained).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    found: list[str] = json.loads(text)
    return found


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


@pytest.mark.integration
@pytest.mark.skipif(not IS_ROOT, reason="needs root, and a user besides")
def test_a_local_user_reaches_nothing_of_a_pod(world: World) -> None:
    def act(attacker: Owned) -> object:
        return None

    shim, _ = play(world, act)
    for path in (world.bed.root, world.bed.directory.parent):
        path.chmod(0o755)
    served = _listen(world.bed.identity.socket)
    assert served is not None
    home, broker = str(world.bed.directory), shim.broker
    gained = as_nobody(
        {
            "list the sandbox": lambda: os.listdir(home),
            "enter it": lambda: os.chdir(home),
            "read the journal": lambda: Path(home, rollback.NAME).read_bytes(),
            "write to it": lambda: Path(home, "new").touch(),
            "write beside it": lambda: Path(home).with_name("new").mkdir(),
            "move it": lambda: os.rename(home, f"{home}.old"),
            "connect to the shim": lambda: connect(world.bed.identity.socket),
            "replace its socket": lambda: os.unlink(world.bed.identity.socket),
            "kill the broker": lambda: os.kill(broker, signal.SIGKILL),
            "take its descriptors": lambda: os.close(syscalls.take_descriptor(broker, 3)),
            "read its memory": lambda: open(f"/proc/{broker}/mem", "rb").close(),
            "enter its root": lambda: os.listdir(f"/proc/{broker}/root"),
            "read its environment": lambda: Path(f"/proc/{broker}/environ").read_bytes(),
            "list its descriptors": lambda: os.listdir(f"/proc/{broker}/fd"),
            "lock the sandbox": lambda: os.open(home, os.O_RDONLY),
        }
    )
    served.close()
    os.unlink(world.bed.identity.socket)
    assert gained == []
    end(shim)
    assert not world.bed.directory.exists()


@pytest.mark.skipif(not IS_ROOT or not os.path.exists("/dev/vsock"), reason="needs root, vsock, and a user")
def test_a_local_user_is_not_taken_for_root_by_a_guests_agent() -> None:
    """vsock asks nobody who he is: any user connects to any guest, and to its agent, which is root there."""

    def call_from(port: int) -> None:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.bind((socket.VMADDR_CID_ANY, port))
            assert sock.getsockname()[1] == port

    def call_reserved() -> None:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            reserved_ports.bind(sock)

    def call_as_root_of_a_namespace() -> None:
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
            raise PermissionError
        call_reserved()

    gained = as_nobody(
        {
            "a reserved port": call_reserved,
            "the first": lambda: call_from(1),
            "the last": lambda: call_from(1023),
            "any other": lambda: call_from(1024 + os.getpid()),
            "as root of a user namespace": call_as_root_of_a_namespace,
        }
    )
    assert gained == ["any other"]


# -- what pods and local users can all read ------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_who_may_read_the_guests_image_locks_no_pod_out(tmp_path: Path) -> None:
    """A lock on these bytes (block/file-posix.c) takes no more than to read the file, and QEMU heeds it."""
    (image := tmp_path / "image").write_bytes(bytes(1 << 20))
    table = QemuHypervisor.model_validate({"kernel": str(image)})
    with open(image, "rb") as opened:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 200, 0)
        fcntl.fcntl(opened, fcntl.F_OFD_SETLK, lock)
        machine = ("-M", "q35", "-nodefaults", "-display", "none", "-vga", "none", "-S", "-m", "16M")
        started = subprocess.run(
            ["qemu-system-x86_64", *machine, "-qmp", "stdio", *command._image(table, image)],
            input=b'{"execute": "qmp_capabilities"}{"execute": "quit"}',
            capture_output=True,
            check=False,
        )
    assert (started.returncode, started.stderr) == (0, b"")
