"""Interfaces that are no veth, all in one pod, on each driver: a page through each and back: `make test-rig`.

Each kind stands on one end of a veth of the node's, whose other end is the peer that is spoken to: frames
that a guest leaves unfinished (checksums, segments) pass through what a host has between a pod and its card.
netkit, a pair as veth is, is among them where the kernel has it: from Linux 6.7 on, so in a rig whose
`--image` has the kernel of Debian 13.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from hashlib import sha256
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

import driver_configuration
from cni_pod import differences, holders
from network_bed import Netns
from node import Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]

BODY = b"a line of the page\n" * (1 << 16)
"""Of more than one segment, and more than a window."""


class Kind(NamedTuple):
    """A kind of interface. options: of `ip link add`. both: whether the peer is one of its kind, too."""

    name: str
    number: int
    options: tuple[str, ...]
    both: bool = False

    def addresses(self, host: int) -> tuple[str, str]:
        """Of the network that this kind has."""
        return f"10.8.{self.number}.{host}", f"fd00:8:{self.number}::{host}"


KINDS = (
    Kind("vlan", 1, ("type", "vlan", "id", "7"), both=True),
    Kind("ipvlan", 2, ("type", "ipvlan", "mode", "l2")),
    Kind("macvlan", 3, ("type", "macvlan", "mode", "bridge")),
)
NETKIT = Kind("netkit", 4, ())
POD, PEER = 2, 5

# linux/rtnetlink.h, linux/if_link.h
_NEWLINK, _REQUEST_ACK_CREATE_EXCL = 16, 0x605
_IFNAME, _LINKINFO, _INFO_KIND, _INFO_DATA = 3, 18, 1, 2
_NETKIT_PEER, _NETKIT_MODE, _NETKIT_L2 = 1, 5, 0


class LinkedPod:
    """A pod's namespace with an interface of each kind, and the node's with their peers."""

    def __init__(self) -> None:
        self.pod, self.node = Netns("pod"), Netns("node")
        self.pod.ip("link", "set", "lo", "up")
        self.kinds: tuple[Kind, ...] = KINDS
        if self.node.call(lambda: _add_netkit("far4", NETKIT.name)):
            self.kinds = (NETKIT, *KINDS)
            self.node.ip("link", "set", NETKIT.name, "netns", self.pod.name)
            self._place(self.pod, NETKIT.name, NETKIT.addresses(POD))
            self._place(self.node, "far4", NETKIT.addresses(PEER))
        for kind in KINDS:
            near, far = f"near{kind.number}", f"far{kind.number}"
            self.node.ip("link", "add", near, "type", "veth", "peer", "name", far)
            for name in (near, far):
                self.node.ip("link", "set", name, "up")
            self.node.ip("link", "add", "link", near, "name", kind.name, *kind.options)
            self.node.ip("link", "set", kind.name, "netns", self.pod.name)
            peer = f"peer{kind.number}" if kind.both else far
            if kind.both:
                self.node.ip("link", "add", "link", far, "name", peer, *kind.options)
            self._place(self.pod, kind.name, kind.addresses(POD))
            self._place(self.node, peer, kind.addresses(PEER))
        for namespace in (self.pod, self.node):
            while "tentative" in namespace.ip("address", "show"):
                threading.Event().wait(0.05)

    def _place(self, namespace: Netns, name: str, addresses: tuple[str, str]) -> None:
        four, six = addresses
        namespace.ip("address", "add", f"{four}/24", "dev", name)
        namespace.ip("address", "add", f"{six}/64", "dev", name, "nodad")
        namespace.ip("link", "set", name, "up")

    def close(self) -> None:
        """Remove both."""
        self.pod.close()
        self.node.close()


def _add_netkit(name: str, peer: str) -> bool:
    """Make a pair in L2 mode, which not every iproute2 knows; False where the kernel has none."""

    def attribute(kind: int, content: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)

    other = bytes(16) + attribute(_IFNAME, peer.encode() + b"\0")
    mode = attribute(_NETKIT_MODE, struct.pack("=I", _NETKIT_L2))
    data = attribute(_INFO_DATA, mode + attribute(_NETKIT_PEER, other))
    info = attribute(_LINKINFO, attribute(_INFO_KIND, b"netkit\0") + data)
    link = bytes(16) + attribute(_IFNAME, name.encode() + b"\0") + info
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(link), _NEWLINK, _REQUEST_ACK_CREATE_EXCL, 1, 0) + link)
        negative: int = struct.unpack_from("=i", kernel.recv(4096), 16)[0]
    if negative not in (0, -errno.EOPNOTSUPP):
        raise OSError(-negative, os.strerror(-negative))
    return negative == 0


@pytest.fixture
def linked() -> Iterator[LinkedPod]:
    with closing(LinkedPod()) as made:
        yield made


class Server(ThreadingHTTPServer):
    """A server of the page, at an address of a namespace."""

    def __init__(self, namespace: Netns, address: str) -> None:
        super().__init__((address, 0), Page, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=namespace.call_with_descriptor(partial(_listen, address)))
        self.url = f"http://{_host(address)}:{self.socket.getsockname()[1]}/"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_close(self) -> None:
        """End it."""
        self.shutdown()
        super().server_close()


class Page(BaseHTTPRequestHandler):
    """Answers with the page."""

    def do_GET(self) -> None:
        """See BaseHTTPRequestHandler."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _listen(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family).detach()


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def page_from(namespace: Netns, address: str) -> bytes:
    """The guest's page, as who is in a namespace has it."""
    made = namespace.call_with_descriptor(lambda: socket.create_connection((address, 80), 60).detach())
    with socket.socket(fileno=made) as connection:
        connection.settimeout(60)
        connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.read()


def compare_by_command(container: str, kinds: tuple[Kind, ...]) -> None:
    """kata-ctl network finds the interfaces of all kinds, and no difference."""
    argv = [sys.executable, "-m", "kata_runtime.ctl.main", "network", container, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    (found,) = json.loads(done.stdout)
    assert (done.returncode, found["differences"]) == (0, [])
    assert [entry["name"] for entry in found["interfaces"]] == [kind.name for kind in kinds]


SERVE = (
    "mkdir /tmp/w; yes a line of the page | head -n 65536 >/tmp/w/index.html; httpd -h /tmp/w; "
    "echo up; exec sleep 3600"
)


@pytest.mark.parametrize("subject", ["qemu", *driver_configuration.ALL])
def test_pages_pass_through_each_kind(node: Node, linked: LinkedPod, guest_image: Path, subject: str) -> None:
    chosen = ["--with-ns", f"network:{linked.pod.path}"]
    if subject != "qemu":
        chosen += ["--runtime-config-path", str(driver_configuration.write(subject, node, guest_image))]
    before = linked.pod.state()
    with node.running("sh", "-c", SERVE, options=chosen) as client:
        node.until(lambda: client.output == "up\n", "its output")

        def inside(*command: str) -> str:
            return node.ctr("task", "exec", "--exec-id", node.new_id(), client.container, *command).stdout

        for kind in linked.kinds:
            for pod, peer in zip(kind.addresses(POD), kind.addresses(PEER), strict=True):
                assert page_from(linked.node, pod) == BODY, f"{kind.name}: {pod}"
                with Server(linked.node, peer) as server:
                    digest = inside("sh", "-c", f"wget -q -O - {server.url} | sha256sum").split()[0]
                    assert digest == sha256(BODY).hexdigest(), server.url
        assert "network differs" not in node.log()
        compare_by_command(client.container, linked.kinds)
        node.ctr("task", "kill", "--signal", "SIGKILL", client.container)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, linked.pod.state()) == []
    assert holders(linked.pod) == []
