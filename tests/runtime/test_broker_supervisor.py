"""The broker's supervision of its shim: what it answers, names, keeps and kills; and one that floods it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_agent.constants import AGENT_PORT, FORWARD_PORT, STREAM_PORT
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Rule
from kata_hypervisor.seccomp.syscalls import numbers
from kata_runtime.broker import connections, messages, send_queue, supervisor
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.event_loop import EventLoop
from kata_runtime.broker.log_sink import take_fatal_message
from kata_runtime.broker.process import fork_broker

POLICY = "test [base]"
PLAIN: dict[str, Any] = {"fds": [], **dict.fromkeys(("environment", "gate", "seccomp", "privileges"))}


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as bed:
        os.mkfifo(bed.bundle / "log")
        yield bed


def everything_but(*names: str) -> bytes:
    """A filter that asks the supervisor about these calls only."""
    allowed = [name for name in numbers("x86_64") if name not in names]
    return compile_rules((Rule(tuple(allowed)),), actions.NOTIFY).code


CODE = everything_but("mkdir", "mkdirat", "getpgid")


def seal(channel: socket.socket, mode: str = "enforce") -> dict[str, Any]:
    """Announce, install, hand over; returns the broker's answer."""
    assert "result" in ask(channel, "announce_seal", mode=mode, policy=POLICY, within=3600)
    listener = kernel.install(CODE, all_threads=True, listener=True)
    assert listener is not None
    messages.send(channel, messages.encode({"id": 2, "op": "supervise"}), [listener])
    os.close(listener)
    return messages.receive(channel)[0]


def provoke() -> int:
    """A call that the filter does not allow; its errno, 0 when it was made."""
    try:
        os.getpgid(0)
    except OSError as error:
        return error.errno or -1
    return 0


def violate(channel: socket.socket) -> dict[str, Any]:
    threads = seal(channel)["result"]["threads"]
    first, second = provoke(), provoke()
    notice, _ = messages.receive(channel)
    refused = [ask(channel, op, **how)["error"]["message"] for op, how in LATE.items()]
    return {"threads": threads, "errnos": [first, second], "notice": notice, "refused": refused}


LATE: dict[str, dict[str, Any]] = {
    "prepare": {"cgroup": None, "pinning": False},
    "announce_seal": {"mode": "log", "policy": "weaker", "within": 9},
    "register_guest": {"address": 77},
}


def run(bed: Bed, act: Callable[[socket.socket], object]) -> tuple[Shim, list[str]]:
    """A shim that acts, and what the broker has logged by then."""
    log = os.open(bed.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    shim = Shim(bed, act, namespace=False)
    try:
        lines = os.read(log, 1 << 16).decode().splitlines()
    except BlockingIOError:
        lines = []
    os.close(log)
    return shim, lines


def test_a_refused_call_is_named_reported_and_ends_the_shim(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.3)
    shim, log = run(bed, violate)
    (thread,) = shim.result["threads"]
    assert thread[0] == shim.pid
    assert thread[2] == 2
    assert shim.result["errnos"] == [1, 1]  # EPERM, and again
    sentence = shim.result["notice"]["violation"]
    called = f"seccomp: the runtime's process called getpgid (121) on thread {thread[1]} (tid {shim.pid})"
    assert sentence.startswith(called)
    assert f"which policy {POLICY} does not allow: the call was refused and the pod ended" in sentence
    assert all("is refused after the seal" in message for message in shim.result["refused"])
    named, *late = log
    assert "getpgid" in named
    assert "level=error" in named
    assert len(late) == len(LATE)
    assert all("level=warning" in line and "refused what the sealed shim asked for" in line for line in late)
    # It does not exit by itself; the broker kills it, undoes everything, and leaves the sentence.
    assert os.waitstatus_to_exitcode(os.waitpid(shim.pid, 0)[1]) == -signal.SIGKILL
    wait_for_end(shim.broker)
    assert take_fatal_message(str(bed.bundle)) == sentence
    assert take_fatal_message(str(bed.bundle)) == ""
    assert not bed.directory.exists()


def test_in_log_mode_calls_are_made_and_counted(bed: Bed) -> None:
    def act(channel: socket.socket) -> object:
        seal(channel, "log")
        errnos = [provoke() for _ in range(3)]
        # Refused or not, it is made: the answer comes after the record was written.
        return [errnos, json.loads((bed.directory / supervisor.RECORD).read_text())]

    shim, log = run(bed, act)
    errnos, record = shim.result
    assert errnos == [0, 0, 0]
    assert record["mode"] == "log"
    assert record["policy"] == POLICY
    assert record["calls"]["getpgid"] >= 2
    assert len(log) == 1
    assert "level=warning" in log[0]
    assert "it was let through" in log[0]
    shim.kill()
    wait_for_end(shim.broker)
    assert take_fatal_message(str(bed.bundle)) == ""


def test_a_shim_that_does_not_hand_over_its_listener_is_killed(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(channel: socket.socket) -> object:
        return ask(channel, "announce_seal", mode="enforce", policy=POLICY, within=1)

    shim, _ = run(bed, act)
    assert os.waitstatus_to_exitcode(os.waitpid(shim.pid, 0)[1]) == -signal.SIGKILL
    wait_for_end(shim.broker)
    assert "before it could hand over the filter's listener" in take_fatal_message(str(bed.bundle))


def test_a_listener_is_not_taken_twice_or_unannounced(bed: Bed) -> None:
    def supervise(channel: socket.socket) -> str:
        with open(os.devnull, "rb") as null:
            messages.send(channel, messages.encode({"id": 3, "op": "supervise"}), [null.fileno()])
        return str(messages.receive(channel)[0]["error"]["message"])

    def act(channel: socket.socket) -> object:
        early = supervise(channel)
        seal(channel)
        return [early, supervise(channel)]

    shim, _ = run(bed, act)
    early, twice = shim.result
    assert early == "supervise is refused before the seal: it is allowed after the seal only"
    assert twice == "supervise: the shim is supervised already"
    shim.kill()
    wait_for_end(shim.broker)


def test_without_a_broker_a_refused_call_is_refused_still(bed: Bed) -> None:
    def act(channel: socket.socket) -> object:
        seal(channel)
        channel.close()
        while True:
            number = provoke()
            if number != 1:  # EPERM while the broker still answers
                return number
            time.sleep(0.01)

    shim, _ = run(bed, act)
    assert shim.result == 38  # ENOSYS, by the kernel
    shim.kill()
    wait_for_end(shim.broker)


# -- a shim that does not read -----------------------------------------------------------------------------


def kernel_capacity(packet: bytes) -> int:
    """How many such messages the kernel keeps for a shim that does not read."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        count = 0
        try:
            while True:
                ours.send(packet)
                count += 1
        except BlockingIOError:
            return count


REQUEST = {"id": 7, "op": "oom_kills"}
REPLY = messages.encode({"id": 7, "result": {"count": 0}})


def flood(channel: socket.socket, count: int) -> None:
    """Ask so many times, and read no answer."""
    for _ in range(count):
        messages.send(channel, messages.encode(REQUEST))


def test_a_shim_that_does_not_read_is_supervised_all_the_same(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 1e6)

    def act(channel: socket.socket) -> object:
        child = ask(channel, "spawn", name="qemu", argv=["/bin/sleep", "100"], **PLAIN)["result"]["pid"]
        seal(channel)
        unread = kernel_capacity(REPLY) + send_queue.MAX_QUEUED // 2
        flood(channel, unread)
        errnos = [provoke(), provoke()]
        os.kill(child, signal.SIGKILL)
        # Nothing is lost: as many answers as requests, and both notices.
        channel.settimeout(60)
        seen = [messages.receive(channel)[0] for _ in range(unread + 2)]
        return {
            "errnos": errnos,
            "unanswered": unread - sum("id" in message for message in seen),
            "violations": sum("violation" in message for message in seen),
            "exited": [message["exited"] - child for message in seen if "exited" in message],
            "next": ask(channel, "oom_kills")["result"],
        }

    shim, log = run(bed, act)
    assert shim.result == {
        "errnos": [1, 1],
        "unanswered": 0,
        "violations": 1,
        "exited": [0],
        "next": {"count": 0},
    }
    assert len([line for line in log if "called getpgid" in line]) == 1
    shim.kill()
    wait_for_end(shim.broker)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_shim_that_floods_its_broker_is_named_and_ended(bed: Bed, sealed: bool) -> None:
    def act(channel: socket.socket) -> object:
        child = ask(channel, "spawn", name="qemu", argv=["/bin/sleep", "100"], **PLAIN)["result"]["pid"]
        if sealed:
            seal(channel)
        os.write(started, b"%d" % child)
        flood(channel, 100 * send_queue.MAX_QUEUED)  # ended in the middle of it
        return None

    log = os.open(bed.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    reader, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            channel, broker = fork_broker(bed.identity, str(bed.bundle), namespace=False)
            os.write(started, b"%d " % broker)
            act(channel)
        finally:
            os._exit(1)
    os.close(started)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with open(reader, encoding="ascii") as pipe:
        for other in pipe.read().split():
            wait_for_end(int(other))
    sentence = f"the shim (process {pid}) left its broker's messages unread until 256 were waiting"
    (line,) = [line for line in os.read(log, 1 << 16).decode().splitlines() if "unread" in line]
    os.close(log)
    assert "level=error" in line
    assert sentence in line
    assert take_fatal_message(str(bed.bundle)).startswith(sentence)
    assert not bed.directory.exists()


def test_a_descriptor_that_waits_is_sent_once_and_closed(bed: Bed) -> None:
    loop = EventLoop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        queue = send_queue.SendQueue(ours, loop)
        loop.add(ours.fileno(), lambda events: queue.on_writable())
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(kernel_capacity(REPLY)):
            queue.put(REPLY)
        read, write = os.pipe()
        while (count := len(os.listdir("/proc/self/fd"))) == before + 2:
            queue.put(REPLY, [os.dup(write)])  # kept, once the kernel takes no more
        os.close(write)
        loop.run_once(0)  # not writable yet
        assert len(os.listdir("/proc/self/fd")) == count - 1
        descriptors: list[int] = []
        theirs.setblocking(False)
        while len(os.listdir("/proc/self/fd")) > before + 1 + len(descriptors):
            descriptors += messages.receive(theirs)[1]
            loop.run_once(0)
        while True:
            try:
                descriptors += messages.receive(theirs)[1]
            except BlockingIOError:
                break
        messages.close_all(descriptors)
        assert os.read(read, 1) == b""  # nobody has the other end any more
        os.close(read)


# -- connections -------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/vsock"), reason="needs root, and a kernel with vsock"
)
def test_a_guest_on_vsock_is_called_from_a_port_that_only_root_has(tmp_path: Path, directory: int) -> None:
    """But for streams, of which a node has more than such ports."""
    where = connections.Connections("", str(tmp_path), directory, os.geteuid)
    where.register_guest(4711)
    for port, is_reserved in ((AGENT_PORT, True), (FORWARD_PORT, True), (STREAM_PORT, False)):
        with socket.socket(fileno=where.connect_guest(port)) as connection:
            assert (connection.getsockname()[1] < 1024) == is_reserved


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/vsock"), reason="needs root, and a kernel with vsock"
)
def test_a_pod_has_so_many_reserved_ports_at_a_time(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_RESERVED", 3)
    where = connections.Connections("", str(tmp_path), directory, os.geteuid)
    where.register_guest(4711)
    kept = [where.connect_guest(port) for port in (AGENT_PORT, FORWARD_PORT, AGENT_PORT)]
    with pytest.raises(RequestFailedError, match="has 3 connections to its guest's agent"):
        where.connect_guest(AGENT_PORT)
    os.close(where.connect_guest(STREAM_PORT))
    os.close(kept.pop())
    kept.append(where.connect_guest(FORWARD_PORT))
    for connection in kept:
        os.close(connection)


def test_connections_lead_to_two_places_only(tmp_path: Path, directory: int) -> None:
    (tmp_path / "jail").mkdir()
    events, guest = str(tmp_path / "events"), str(tmp_path / "jail" / "guest")
    where = connections.Connections(events, str(tmp_path), directory, os.geteuid)
    with pytest.raises(RequestFailedError, match="the guest has no address yet"):
        where.connect_guest(1024)
    with pytest.raises(RequestFailedError, match=r"cannot connect to .*/events: No such file"):
        where.connect_events()
    where.register_guest(guest)
    with pytest.raises(RequestFailedError, match=r"cannot connect to .*/guest: No such file") as caught:
        where.connect_guest(1024)
    assert caught.value.errno == errno.ENOENT  # the VMM makes it in a moment
    for path, connect in ((events, where.connect_events), (guest, lambda: where.connect_guest(5))):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            with socket.socket(fileno=connect()) as ours, listener.accept()[0] as theirs:
                assert not os.get_blocking(ours.fileno())
                theirs.send(b"x")
                assert ours.recv(1) == b"x"
    with pytest.raises(RequestFailedError, match="Connection refused"):
        where.connect_guest(5)  # whoever listened there is gone
    where = connections.Connections("x" * 200, str(tmp_path), directory, os.geteuid)
    with pytest.raises(RequestFailedError, match="too long"):
        where.connect_events()


def test_a_guest_is_reached_in_the_sandboxs_directory_only(tmp_path: Path, directory: int) -> None:
    where = connections.Connections("", str(tmp_path), directory, os.geteuid)
    for path in ("/run/containerd/containerd.sock", f"{tmp_path}x/s", f"{tmp_path}/../s", f"{tmp_path}/"):
        with pytest.raises(RequestRefusedError, match="is not below the sandbox's directory"):
            where.register_guest(path)


@pytest.mark.parametrize("link", ["socket", "directory"])
def test_a_link_in_the_place_of_the_guests_socket_is_not_followed(tmp_path: Path, link: str) -> None:
    """What a VMM that a guest owns would put there: the way to containerd's API, through the broker."""
    (tmp_path / "host").mkdir()
    with socket.socket(socket.AF_UNIX) as api:
        api.bind(str(tmp_path / "host" / "guest"))
        api.listen()
        (tmp_path / "pod" / "jail").mkdir(parents=True)
        held = os.open(tmp_path / "pod", os.O_PATH)
        where = connections.Connections("", str(tmp_path / "pod"), held, os.geteuid)
        where.register_guest(str(tmp_path / "pod" / "jail" / "guest"))
        if link == "socket":
            (tmp_path / "pod" / "jail" / "guest").symlink_to(tmp_path / "host" / "guest")
        else:
            (tmp_path / "pod" / "jail").rmdir()
            (tmp_path / "pod" / "jail").symlink_to(tmp_path / "host")
        with pytest.raises(RequestRefusedError, match="a symbolic link is in the way"):
            where.connect_guest(1024)
        os.close(held)


def test_a_file_in_the_place_of_the_guests_socket_is_refused(tmp_path: Path, directory: int) -> None:
    (tmp_path / "guest").touch()
    where = connections.Connections("", str(tmp_path), directory, os.geteuid)
    where.register_guest(str(tmp_path / "guest"))
    with pytest.raises(RequestRefusedError, match="it is not a socket"):
        where.connect_guest(1024)


def test_a_socket_that_another_user_listens_on_is_refused(tmp_path: Path, directory: int) -> None:
    where = connections.Connections("", str(tmp_path), directory, lambda: 1_900_000_007)
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "guest"))
        listener.listen()
        path = str(tmp_path / "guest")
        where.register_guest(path)
        for connect in (partial(where.connect_guest, 1024), partial(where.connect_vmm, path)):
            with pytest.raises(RequestRefusedError, match=r"user \d+ listens on it, not 1900000007"):
                connect()
    assert os.listdir("/proc/self/fd") == before
