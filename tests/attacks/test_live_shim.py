"""A live pod on QEMU whose shim is owned: its descriptors are copied, and the attacker writes to them.

Nothing that the shim's filter refuses is needed for that: who owns the shim writes to what is open in it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_runtime import syscalls
from kata_runtime.broker import messages
from node import FOREVER, Client, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

UNASKED = 10**9
"""Number of the requests: the shim drops the answers, because it knows none like it."""
STREAM = (socket.AF_UNIX, socket.SOCK_STREAM)


class Owned:
    """What an attacker has of a shim: copies of its sockets, which are the very sockets."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.broker = pids["broker"]
        self.shim = pids["shim"]
        self.vmm = pids["qemu"]

    def _use(self, data: bytes, is_right: Callable[[socket.socket], bool]) -> None:
        """Send on the one socket that is right; no copy is kept, which containerd would wait for."""
        sent = 0
        for name in os.listdir(f"/proc/{self.shim}/fd"):
            if os.readlink(f"/proc/{self.shim}/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=syscalls.take_descriptor(self.shim, int(name))) as copy:
                    if is_right(copy):
                        copy.sendall(data)
                        sent += 1
        assert sent == 1

    def tell_broker(self, packet: bytes) -> None:
        """Send a packet to the broker."""
        self._use(packet, lambda one: one.type == socket.SOCK_SEQPACKET)

    def tell_monitor(self, data: bytes) -> None:
        """Send bytes to QEMU's monitor: on the stream whose other end the broker made."""
        self._use(data, lambda one: (one.family, one.type) == STREAM and _peer(one) == self.broker)

    def ask(self, op: str, **arguments: object) -> None:
        """Send a request; the log says what became of it, because the shim reads the answer."""
        self.tell_broker(messages.encode({"id": UNASKED, "op": op, **arguments}))


def _peer(end: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


@contextmanager
def owned(node: Node) -> Iterator[tuple[Client, Owned]]:
    """A running container, and the attacker in its shim."""
    with node.running(*FOREVER) as client:
        yield client, Owned(node.pids(client.container))


def named(node: Node, container: str, what: str) -> list[str]:
    """Lines of the log about one sandbox that say something."""
    return [line for line in node.log().splitlines() if what in line and container in line]


def test_an_owned_shim_gets_nothing_of_the_host_and_is_named(node: Node, tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("precious")
    tmp_path.chmod(0o777)
    with owned(node) as (client, attacker):
        bundle = next((node.root / "state").glob(f"*/*/{client.container}"))
        before = Path(f"/proc/{attacker.broker}/mountinfo").read_text()
        held = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{attacker.shim}/fd")]
        assert not [path for path in held if path.endswith("/log")], "it can drown what is said of it"
        bind = {"target": f"{bundle}/rootfs/x", "readonly": False, "recursive": True}
        target = {"target": f"{bundle}/rootfs/m"}
        spawn = dict.fromkeys(("environment", "gate", "seccomp", "privileges"))
        requests: list[tuple[str, dict[str, object]]] = [
            ("bind", {"source": "/", **bind}),
            ("bind", {"source": str(tmp_path), **bind}),
            ("mount", {**target, "mounts": [["bind", "/", ["rbind", "rw"]]]}),
            ("mount", {**target, "mounts": [["erofs", "/dev/vda", ["device=/etc/shadow"]]]}),
            ("open_spec", {"bundle": "/etc"}),
            ("spawn", {"name": "qemu", "argv": ["/bin/rm", str(secret)], "fds": [], **spawn}),
            ("open_log", {"path": "/etc/cron.d/x"}),
            ("open_fifo", {"path": "/run/initctl", "mode": "w"}),
            ("make_directory", {"path": f"{tmp_path}/new"}),
            ("remove", {"path": str(secret)}),
            ("unmount", {"target": "/"}),
            ("register_guest", {"address": str(node.root / "containerd.sock")}),
            ("announce_seal", {"mode": "log", "policy": "none", "within": 60}),
            ("take_user", {"base": 1, "count": 1}),
        ]
        for op, asked in requests:
            attacker.ask(op, **asked)
        refused = {f"refused what the sealed shim asked for: {op}: " for op, _ in requests}

        def all_are_named() -> bool:
            return all(named(node, client.container, what) for what in refused)

        node.until(all_are_named, "each operation in the log")
        assert Path(f"/proc/{attacker.broker}/mountinfo").read_text() == before
        assert secret.read_text() == "precious"
        assert not client.ended, "a refusal costs the attacker nothing but its line"
        # A command with a path, to the one that holds QEMU's monitor: that ends the pod.
        arguments = {"val": 0, "size": 4096, "filename": str(tmp_path / "memory")}
        attacker.tell_monitor(json.dumps({"execute": "pmemsave", "arguments": arguments}).encode())
        assert client.wait() != 0
        sentence = "the shim sent to its VMM's monitor what it must not: the command 'pmemsave'"
        node.until(lambda: named(node, client.container, sentence), "the sentence in the log")
        ended = [f"/proc/{pid}" for pid in (attacker.shim, attacker.broker, attacker.vmm)]
        node.until(lambda: not any(map(os.path.exists, ended)), "the end of its processes")
    assert os.listdir(tmp_path) == ["secret"]
