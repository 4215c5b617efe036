"""A shim that a guest owns: it asks its broker for everything that there is, and gains nothing.

`hostile_requests` has the attacks of each operation, so that an operation without an attack fails here.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from attack_bed import IS_ROOT, Owned, World, end, host_mounts, make_world, mounts_of, play
from broker_bed import wait_for_end
from hostile_requests import OUTSIDE, SEALED, hostile, sources, targets
from kata_agent import reserved_ports
from kata_hypervisor.kvm import probe
from kata_runtime.broker import connections, messages
from kata_runtime.broker import streams as broker_streams
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.operations import OPERATIONS
from kata_runtime.broker.operations.streams import FIFO_MODES


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        yield made


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process of the host's that is nobody's child here but the test's."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process.pid
    assert process.poll() is None, "somebody has killed it"
    process.kill()
    process.wait()


def test_every_operation_is_attacked(world: World) -> None:
    assert hostile(world, 2).keys() == {operation.name for operation in OPERATIONS}


def surprises(
    attacker: Owned, op: str, attacks: Sequence[tuple[Mapping[str, Any], str | None]]
) -> list[list[Any]]:
    """What was answered other than it must be. Each operation that takes a descriptor gets the attacker's."""
    takes = next(operation.descriptors for operation in OPERATIONS if operation.name == op)
    found: list[list[Any]] = []
    for arguments, says in attacks:
        reader, writer = os.pipe()
        answer = attacker.ask(op, [reader] * takes if isinstance(takes, int) else [], **arguments)
        os.close(reader)
        os.close(writer)
        message = answer.get("error", {}).get("message", "")
        if not IS_ROOT and op in ("bind", "mount") and "Operation not permitted" in message:
            continue  # what would have been asked next needs a source that was taken
        right = "result" in answer if says is None else re.search(says, message)
        if not right or answer["gained"]:
            found.append([op, arguments, answer])
    return found


def test_a_sealed_shim_gains_nothing_by_any_operation(
    world: World, bystander: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = world.bed.root / "probes"

    def count_probe(**_: object) -> probe.KvmProbeResult:
        with open(probes, "a", encoding="ascii") as file:
            file.write("x")
        return probe.KvmProbeResult(True, True, "")

    monkeypatch.setattr(probe, "probe_kvm", count_probe)
    before = host_mounts(world)

    def act(attacker: Owned) -> object:
        untouched = world.snapshot()
        wrong = [
            one
            for op, attacks in hostile(world, bystander).items()
            if op != "close"
            for one in surprises(attacker, op, attacks)
        ]
        return {"wrong": wrong[:5], "count": len(wrong), "touched": world.snapshot() != untouched}

    shim, log = play(world, act)
    assert shim.result == {"wrong": [], "count": 0, "touched": False}
    assert not world.api_was_asked()
    assert probes.read_text() == "x"
    assert host_mounts(world) == before
    if IS_ROOT:
        ours = {mount for mount in mounts_of(shim.broker) if str(world.bed.root) in mount}
        assert {mount for mount in ours if not mount.startswith(world.bed.shared)} == set()
    named = [line for line in log if "refused what the sealed shim asked for" in line]
    assert named
    assert "level=warning" in named[0]
    assert len(named) <= 100, "whoever owns the shim fills the log"
    end(shim)
    assert not world.bed.directory.exists()


def test_each_kind_of_refusal_is_logged_by_name(world: World, bystander: int) -> None:
    """One attack of each operation: the log of the host says what was tried."""

    def act(attacker: Owned) -> object:
        attacks = hostile(world, bystander)
        refused = [op for op, cases in attacks.items() if cases[0][1] is not None]
        for op in refused:
            surprises(attacker, op, attacks[op][:1])
        return refused

    shim, log = play(world, act)
    # Tried, and not there.
    failed = {
        "confinement",
        "end_loading",
        "open_image",
        "show_image",
        "connect_guest",
        "connect_events",
        "late_interfaces",
    }
    for op in set(shim.result) - failed:
        assert any(f"refused what the sealed shim asked for: {op}: " in line for line in log), op
    end(shim)


def test_before_the_seal_the_sandbox_is_a_limit_too(world: World) -> None:
    """What a specification or an annotation could bring a shim to ask for that nobody owns yet."""
    bed = world.bed

    def act(attacker: Owned) -> object:
        untouched = world.snapshot()
        wrong: list[object] = []
        for path in targets(world):
            if path != str(bed.bundle):
                wrong += surprises(attacker, "make_directory", [({"path": path}, OUTSIDE)])
            wrong += surprises(attacker, "unmount", [({"target": path}, "was not mounted by this broker")])
            wrong += surprises(attacker, "remove", [({"path": path}, "was not made by this broker")])
            how = {"source": str(world.volume), "readonly": False, "recursive": True}
            wrong += surprises(attacker, "bind", [({"target": path, **how}, OUTSIDE + "|is there already")])
        for kind, option in (("erofs", "device=/etc/shadow"), ("ext4", "errors=panic"), ("bind", "remount")):
            asked = {"target": f"{bed.shared}/m", "mounts": [[kind, "/dev/vda", [option]]]}
            wrong += surprises(attacker, "mount", [(asked, "is not allowed|is not possible here")])
        elsewhere = [({"address": str(world.host / "api.sock")}, "is not below the sandbox's directory")]
        wrong += surprises(attacker, "register_guest", elsewhere)
        jail = [({"root": str(world.host / "jail"), "files": {}}, "is not below|has its jail already")]
        wrong += surprises(attacker, "make_jail", jail)
        wrong += surprises(attacker, "supervise", [({}, "is refused before the seal")])
        return {"wrong": wrong[:3], "touched": world.snapshot() != untouched}

    shim, _ = play(world, act, sealed=False)
    assert shim.result == {"wrong": [], "touched": False}
    end(shim)


@pytest.mark.skipif(not IS_ROOT, reason="cgroups need root")
def test_an_owned_shim_that_closes_the_sandbox_stays_in_its_cgroup_to_its_end(world: World) -> None:
    """All else is undone then; what it has left is its process, which would have the whole host."""

    def act(attacker: Owned) -> object:
        answer = attacker.ask("close")["result"]
        return [answer, Path("/proc/self/cgroup").read_text().count("/kata-attacked/pod")]

    def start(honest: Owned) -> None:
        honest.ask("prepare", cgroup="/kata-attacked/pod", pinning=False)

    shim, _ = play(world, act, before=start)
    answer, groups = shim.result
    assert answer == {"left": [], "outlives": True}
    assert groups > 0
    assert os.waitstatus_to_exitcode(os.waitpid(shim.pid, 0)[1]) == -signal.SIGKILL
    wait_for_end(shim.broker)
    assert not list(Path("/sys/fs/cgroup").glob("**/kata-attacked"))


def test_an_owned_shim_writes_to_no_other_copy_of_the_native_snapshotter(world: World) -> None:
    """Neither into the root of a container that runs, nor by what the kernel does for overlay."""
    copies = world.lib / "io.containerd.snapshotter.v1.native" / "snapshots"
    (copies / "2").mkdir(parents=True)
    for number in ("3", "4"):
        for name in ("etc", "work"):
            (copies / number / name).mkdir(parents=True)
            (copies / number / name / "precious").touch()
    own, theirs, target = f"{copies}/2", f"{copies}/3", f"{world.bed.shared}/m"

    def start(honest: Owned) -> None:
        honest.ask("mount", target=f"{world.bed.shared}/d/rootfs", mounts=[["bind", own, ["rbind", "rw"]]])

    def act(attacker: Owned) -> object:
        for kind, source, options in (
            ("bind", f"{theirs}/etc", ["rbind", "rw"]),
            ("overlay", "overlay", [f"lowerdir={own}", f"upperdir={own}", f"workdir={theirs}"]),
            ("overlay", "overlay", [f"lowerdir={theirs}", f"upperdir={own}", f"workdir={copies}/4"]),
        ):
            says = str(attacker.ask("mount", target=target, mounts=[[kind, source, options]]).get("error"))
            if "may be another container's" not in says and "of that container's alone" not in says:
                return says
        return sorted(str(path.relative_to(copies)) for path in copies.glob("*/*/*"))

    shim, _ = play(world, act, before=start)
    assert shim.result == [f"{number}/{name}/precious" for number in "34" for name in ("etc", "work")]
    end(shim)


def test_an_owned_shim_does_not_use_up_containerds_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_TO_EVENTS", 2)
    made = connections.Connections(str(world.host / "api.sock"), "/", -1, lambda: 0)
    for _ in range(2):
        os.close(made.connect_events())
    with pytest.raises(RequestRefusedError, match="the sandbox has connected 2 times"):
        made.connect_events()


def test_an_owned_shim_does_not_use_up_the_hosts_reserved_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for the agents of all pods; what it closes it may have again."""
    monkeypatch.setattr(connections, "MAX_RESERVED", 2)
    taken: set[int] = set()

    def bind(sock: socket.socket) -> int:
        taken.add(port := 1 + len(taken))
        return port

    monkeypatch.setattr(reserved_ports, "bind", bind)
    monkeypatch.setattr(reserved_ports, "is_free", lambda port: port not in taken)
    made = connections.Connections("", "/", -1, lambda: 0)
    with socket.socket(socket.AF_UNIX) as sock:
        for _ in range(2):
            made._bind(sock)
        with pytest.raises(RequestFailedError, match="has 2 connections to its guest's agent"):
            made._bind(sock)
        taken.clear()
        made._bind(sock)


def test_an_owned_shim_does_not_take_from_containerd_what_is_said_of_it(world: World) -> None:
    """Whoever reads the log of the bundle has its lines, and containerd has not."""
    path = str(world.bed.bundle / "log")

    def act(attacker: Owned) -> object:
        return [attacker.ask("open_fifo", path=path, mode=mode)["gained"] for mode in FIFO_MODES]

    shim, log = play(world, act)
    assert shim.result == [[], [], []]
    assert len(log) == len(FIFO_MODES)
    assert all(f"cannot open the FIFO {path}: the sandbox is sealed" in line for line in log)
    end(shim)


def test_an_owned_shim_makes_no_more_logs_than_it_may(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_streams, "MAX_LOGS", 3)  # one was made before the seal
    logs = world.state / "logs"

    def act(attacker: Owned) -> object:
        asked = [attacker.ask("open_log", path=str(logs / name)) for name in ("own.log", "a", "b", "c", "a")]
        return ["result" in answer for answer in asked]

    shim, _ = play(world, act)
    assert shim.result == [True, True, True, False, True]
    assert not (logs / "c").exists()
    end(shim)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_asked_in_whatever_order_nothing_is_gained(
    world: World, bystander: int, seed: int
) -> None:
    """Arguments that are well formed, made of everything that an attacker knows, in a random order."""
    specification = f"inode {(world.bed.bundle / 'config.json').stat().st_ino}"
    own = (str(world.bed.bundle), specification, str(world.state / "logs" / "own.log"))
    allowed = (*own, "pipe:", "socket:")

    def act(attacker: Owned) -> object:
        choose = random.Random(seed)
        untouched = world.snapshot()
        gained = []
        for _ in range(250):
            op, arguments = random_request(world, bystander, choose)
            answer = attacker.ask(op, **arguments)
            gained += [[op, arguments, to] for to in answer["gained"] if not to.startswith(allowed)]
        return {"gained": gained[:3], "touched": world.snapshot() != untouched}

    before = host_mounts(world)
    shim, _ = play(world, act)
    assert shim.result == {"gained": [], "touched": False}
    assert host_mounts(world) == before
    if IS_ROOT:
        scope = (world.bed.shared, f"{world.bed.bundle}/rootfs")
        ours = [mount for mount in mounts_of(shim.broker) if str(world.bed.root) in mount]
        assert [mount for mount in ours if not mount.startswith(scope)] == []
    end(shim)
    assert not world.bed.directory.exists()


def random_request(world: World, bystander: int, choose: random.Random) -> tuple[str, dict[str, Any]]:
    """A request that passes every check of its form, to which the broker must find the right answer."""
    bed = world.bed
    inside = [f"{bed.shared}/{name}" for name in ("a", "a/b", "c/volume", "c/volume/out", "c/rootfs/out/x")]
    path: Callable[[], str] = lambda: choose.choice(  # noqa: E731
        [*targets(world), *sources(world), *inside, *inside, f"{bed.bundle}/rootfs", f"{bed.bundle}/log"]
    )
    flag: Callable[[], bool] = lambda: choose.random() < 0.5  # noqa: E731
    mount = [
        choose.choice(["bind", "overlay", "ext4", "erofs"]),
        path(),
        choose.sample(["ro", "rw", "rbind", "index=off", f"lowerdir={path()}:{path()}", "volatile"], 3),
    ]
    requests: dict[str, dict[str, Any]] = {
        "kill": {"pid": bystander, "signal": signal.SIGKILL},
        "open_spec": {"bundle": os.path.dirname(path())},
        "make_directory": {"path": path()},
        "mount": {"target": path(), "mounts": [mount]},
        "bind": {"source": path(), "target": path(), "readonly": flag(), "recursive": flag()},
        "share": {"source": path(), "readonly": flag(), "recursive": flag(), "readonly_below": flag()},
        "find_memory": {"source": path()},
        "unshare": {"place": choose.choice([".volumes/0", ".volumes/1", ".volumes/0/below", path()])},
        "unmount": {"target": path()},
        "remove": {"path": path()},
        "give_device": {"device": choose.choice(["7:0", "8:0"]), "write": flag()},
        "open_device": {"device": choose.choice(["7:0", "8:0"]), "write": flag()},
        "show_device": {
            "disk": choose.choice(["a", "b"]),
            "device": choose.choice(["7:0", "8:0"]),
            "write": flag(),
        },
        "show_image": {"disk": choose.choice(["a", "b"]), "image": f"{choose.randrange(3):064x}"},
        "hide_image": {"disk": choose.choice(["a", "b"])},
        "open_fifo": {"path": path(), "mode": choose.choice(["r", "w", "rw"])},
        "open_log": {"path": path()},
        "connect_guest": {"port": 1024},
        "connect_events": {},
    }
    return choose.choice(list(requests.items()))


def test_an_owned_shim_does_not_stop_poststop_hooks_halfway(world: World) -> None:
    """They are begun once: what such a hook releases on the host would stay taken."""
    bundle = world.bed.bundle
    done = world.bed.root / "released"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"sleep 0.3; echo pod >{done}"]}
    spec = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**spec, "hooks": {"poststop": [hook]}}))
    # It closes the pipe with the answer at once.
    shim, _ = play(
        world,
        lambda attacker: attacker.ask("run_hooks", kind="poststop")["result"],
        before=lambda honest: honest.ask("learn_hooks"),
    )
    assert shim.result == {}
    end(shim)
    assert done.read_text() == "pod\n"


def test_hooks_are_containerds_and_run_once(world: World) -> None:
    """The owned shim asks for those that ran before the guest, and for the others again and again."""
    bundle, marks = world.bed.bundle, world.bed.root / "marks"
    spec = json.loads((bundle / "config.json").read_text())
    kinds = ("createRuntime", "poststart")
    hooks = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >/dev/null; echo {kind} >>{marks}"]}]
        for kind in kinds
    }
    (bundle / "config.json").write_text(json.dumps({**spec, "ociVersion": "1.0.2", "hooks": hooks}))

    def act(attacker: Owned) -> object:
        first = attacker.ask("run_hooks", kind="createRuntime")
        messages.send(attacker.channel, messages.encode({"id": 1, "op": "run_hooks", "kind": "poststart"}))
        _, (answer,) = messages.receive(attacker.channel)
        os.set_blocking(answer, True)
        ran = os.read(answer, 1000).decode()
        # A hook that the guest has written in the meantime is none.
        (bundle / "config.json").write_text(json.dumps({"hooks": {"poststop": hooks["poststart"]}}))
        again = [attacker.ask("run_hooks", kind=kind) for kind in (*kinds, "poststop")]
        return [ran, ["result" in one for one in (first, *again)]]

    shim, _ = play(world, act, before=lambda honest: honest.ask("learn_hooks"))
    assert shim.result == ["[]", [False] * 4]
    end(shim)
    assert marks.read_text() == "poststart\n"


def test_a_copy_of_the_channel_does_not_outlive_the_shim(world: World) -> None:
    """The owned shim may send: its end of the channel to the VMM, which a guest owns too."""
    ready, done = os.pipe()

    def act(attacker: Owned) -> object:
        accomplice = os.fork()
        if accomplice == 0:
            for fd in set(range(3, 1024)) - {ready, attacker.channel.fileno()}:
                with contextlib.suppress(OSError):
                    os.close(fd)
            os.read(ready, 1)
            os._exit(0)
        return accomplice

    shim, _ = play(world, act)
    shim.kill()
    wait_for_end(shim.broker)
    assert not world.bed.directory.exists()
    os.close(done)
    wait_for_end(shim.result)
    os.close(ready)


def test_who_closes_the_pod_ends_his_own(world: World, bystander: int) -> None:
    def act(attacker: Owned) -> object:
        untouched = world.snapshot()
        answer = attacker.ask("close")
        return {"left": answer["result"]["left"], "touched": world.snapshot() != untouched}

    shim, _ = play(world, act)
    assert shim.result == {"left": [], "touched": False}
    wait_for_end(shim.broker)
    assert not world.bed.directory.exists()
    assert os.path.exists(f"/proc/{bystander}")
    shim.kill()


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b"[]", b"{", b"\xff", b'{"id": 1, "op": ' + b"[" * 60000, b"x" * 70000),
        b'{"id": ' + b"[" * 400 + b"]" * 400 + b', "op": "oom_kills"}',
        b'{"id": "' + b"x" * 65000 + b'", "op": "close it"}',
    ],
    ids=["empty", "list", "cut", "bytes", "deep", "long", "deep id", "long id"],
)
def test_a_message_that_no_shim_sends_ends_its_own_pod_at_most(world: World, packet: bytes) -> None:
    def act(attacker: Owned) -> object:
        attacker.channel.send(packet)
        return None

    shim, _ = play(world, act)
    end(shim)
    assert not world.bed.directory.exists()
    assert Path(world.host / "secret").read_text() == "precious secret"


def test_an_owned_shim_neither_ends_its_logger_nor_has_another(world: World) -> None:
    """It writes what the guest says, as it did; nothing else runs, and nothing that was written is lost."""
    log, pid, other = (world.bed.root / name for name in ("container.log", "pid", "other"))
    held: list[int] = []

    def script(name: str, text: str) -> str:
        path = world.bed.root / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return f"binary://{path}"

    def before(honest: Owned) -> None:
        uri = script("logger", f"echo $$ >{pid}; exec 5>&-; cat <&3 >{log}; echo whole >>{log}")
        messages.send(honest.channel, messages.encode({"id": 1, "op": "start_logger", "uri": uri}))
        message, received = messages.receive(honest.channel)
        assert "result" in message
        held.extend(received)
        os.set_blocking(held[0], True)
        assert os.read(held[0], 1) == b""

    def act(attacker: Owned) -> object:
        number = int(pid.read_text())
        for sent in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            attacker.ask("kill", pid=number, signal=int(sent))
        again = attacker.ask("start_logger", uri=script("another", f"touch {other}"))
        os.write(held[1], b"what the guest says\n")
        messages.close_all(held)
        return again["error"]["message"]

    shim, _ = play(world, act, before=before)
    assert re.search(SEALED, shim.result)
    end(shim)
    assert log.read_text() == "what the guest says\nwhole\n"
    assert not other.exists()
