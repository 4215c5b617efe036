"""A start against nobody, in the zygote before its first fork: what it makes ready once, no fork makes again.

Python rewrites the code of a function when it has been called eight times (PEP 659), and keeps what it has
looked up; libraries make what they need when it is first asked for. In a fork that is work, and a copy of
each page that it writes to. So a whole shim runs here some times, up to its machine, which it is refused. Its
broker is a fork that knows the answers: nothing is done on the host, and nothing is left in this process.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket

import anyio
from google.protobuf.empty_pb2 import Empty

from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.status import RpcError
from kata_runtime.broker import cgroups, descriptors, messages, operations
from kata_runtime.broker.event_loop import EventLoop
from kata_runtime.broker.send_queue import SendQueue
from kata_runtime.confinement import judging, reading
from kata_runtime.confinement.rows import BROKER, INIT, SHIM, row_of
from kata_runtime.containerd_api import task_pb2, types_pb2
from kata_runtime.logging import HYPERVISOR, RUNTIME
from kata_runtime.shim import server
from kata_runtime.shim.setup import FIELDS, Setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ROUNDS = 20
"""Eight calls for each kind of container, and two for what Python finds out by the next ones."""
PATIENCE = 10.0
"""Seconds that a round may take; it takes some hundredths of one."""

_SERVICE = "containerd.task.v2.Task"
_ID = "rehearsal"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Those that a shim ignores."""

_SPEC = {
    "ociVersion": "1.1.0",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/sleep"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {name: ["CAP_KILL", "CAP_CHOWN"] for name in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "cgroupsPath": f"/default/{_ID}",
        "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
        "maskedPaths": ["/proc/acpi", "/proc/kcore"],
        "readonlyPaths": ["/proc/bus", "/proc/sys"],
    },
}
_UNIKERNEL = {
    f"com.urunc.unikernel.{key}": base64.b64encode(value).decode()
    for key, value in {"binary": b"/u", "hypervisor": b"hvt", "unikernelType": b"mirage"}.items()
}
_RESULTS: dict[str, dict[str, Any]] = {
    "prepare": {"path": f"/default/{_ID}"},
    "take_user": {"uid": 1},
    "learn_network": {"pid": 1},
    **{name: {} for name in ("make_directory", "mount", "unmount", "remove")},
    "close": {"left": [], "outlives": False},
}
"""Of the operations that are done. All others fail, which is also how a start ends."""


_REQUESTS = (
    {"op": "open_spec", "bundle": "/b"},
    {"op": "open_fifo", "path": "/f", "mode": "r"},
    {"op": "take_user", "base": 1, "count": 1},
    {"op": "make_directory", "path": "/d"},
    {"op": "mount", "target": "/t", "mounts": [["overlay", "overlay", ["lowerdir=/a:/b"]]]},
    {"op": "network_state"},
)
"""What a broker takes apart."""


def rehearse() -> None:
    """Let a shim serve a client ROUNDS times. A start that fails here fails in each shim, which tells it."""
    with _nothing_changed(), contextlib.suppress(Exception):
        for number in range(ROUNDS):
            play(unikernel=bool(number % 2))
            work_as_broker()


@contextlib.contextmanager
def _nothing_changed() -> Iterator[None]:
    """Undo what a shim changes of its process, and keep what it logs from everybody."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    levels = {name: logging.getLogger(name).level for name in (RUNTIME, HYPERVISOR)}
    logging.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the brokers away
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()  # sockets are in circles


def play(*, unikernel: bool) -> list[str]:
    """Let a shim serve a client once, which asks for a container of this kind; return what it did.

    Raises what stops it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        try:
            ours.close()
            _be_broker(theirs, unikernel=unikernel)
        finally:
            os._exit(0)
    theirs.close()
    # Not by tempfile, which would have all forks go on from one random state.
    directory = f"/tmp/kata-zygote-{os.getpid()}"
    place = f"{directory}/{_ID}"
    os.mkdir(directory, 0o700)
    try:
        return anyio.run(_serve, ours, pid, place)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        os.rmdir(directory)


def _be_broker(channel: socket.socket, *, unikernel: bool) -> None:
    """Answer until the shim has closed the sandbox."""
    asked_for_state = False
    while True:
        message, _ = messages.receive(channel)
        name = message["op"]
        result, passed = _RESULTS.get(name), -1
        if name == "open_spec":
            result, passed = {}, _file(_SPEC)
        elif name == "open_in_image" and unikernel:
            result, passed = {}, _file(_UNIKERNEL)
        elif name == "open_fifo":
            result, passed = {}, os.pipe2(os.O_NONBLOCK)[1]
        elif name == "network_state" and not asked_for_state:
            result, asked_for_state = {"interfaces": [], "configured": False}, True
        error = {"kind": "failed", "message": _ID, "errno": errno.ENOENT}
        answer = {"error": error} if result is None else {"result": result}
        messages.send(
            channel, messages.encode({"id": message["id"], **answer}), [passed] if passed >= 0 else []
        )
        if name == "close":
            return


def _file(content: object) -> int:
    file = os.memfd_create(_ID)
    os.write(file, json.dumps(content).encode())
    os.lseek(file, 0, os.SEEK_SET)
    return file


def work_as_broker() -> None:
    """Do what a broker does again and again, and leaves nothing: ask the kernel, and answer."""
    pid = os.getpid()
    place, facts = reading.read_place(pid), reading.read(pid)
    for role in (SHIM, INIT, BROKER):
        list(judging.find_weaknesses(row_of(role), facts, place, user=1))
    descriptors.kinds(pid)
    membership = cgroups.read_membership()
    for hierarchy in cgroups.hierarchies():
        cgroups.current(hierarchy, membership)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = EventLoop()
    answers = SendQueue(ours, loop)

    def answer(_: int) -> None:
        message, _passed = messages.receive(ours)
        operations.parse(message, 0)
        answers.put(messages.encode({"id": message["id"], "result": {}}))

    with ours, theirs:
        loop.add(ours.fileno(), answer)
        for request in _REQUESTS:
            messages.send(theirs, messages.encode({"id": 1, **request}))
            loop.run_once(0)
            messages.receive(theirs)


async def _serve(channel: socket.socket, broker: int, place: str) -> list[str]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(place)
    listener.listen(1)
    setup = Setup(
        dict.fromkeys(FIELDS, "") | {"sandbox": _ID, "namespace": _ID, "address": "/"},
        bundle="/",
        listener_fd=listener.detach(),
        foreground=False,
        origin=_ID,
    )
    done: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, setup, channel, broker)
            done += await _ask(place)
    return done


async def _ask(place: str) -> list[str]:
    """Ask as containerd does for a pod's life; return the methods that were not refused."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(place)
    sock.setblocking(False)
    client = await Client.from_socket(sock)
    done = []
    root = types_pb2.Mount(type="overlay", source="overlay", options=["index=off", "lowerdir=/a:/b"])
    create = task_pb2.CreateTaskRequest(
        id=_ID, bundle="/", rootfs=[root], stdin="/i", stdout="/o", stderr="/e"
    )
    for method, request, response in (
        ("Connect", task_pb2.ConnectRequest(id=_ID), task_pb2.ConnectResponse),
        ("Create", create, task_pb2.CreateTaskResponse),
        ("State", task_pb2.StateRequest(id=_ID), task_pb2.StateResponse),
        ("Start", task_pb2.StartRequest(id=_ID), task_pb2.StartResponse),
        ("Wait", task_pb2.WaitRequest(id=_ID), task_pb2.WaitResponse),
        ("Kill", task_pb2.KillRequest(id=_ID, signal=9), Empty),
        ("Delete", task_pb2.DeleteRequest(id=_ID), task_pb2.DeleteResponse),
        ("Shutdown", task_pb2.ShutdownRequest(id=_ID), Empty),
    ):
        with contextlib.suppress(RpcError):
            await client.call(_SERVICE, method, request, response)
            done.append(method)
    await client.aclose()
    return done
