"""A unikernel with the network of its pod, in the shim's process and in Solo5's tenders, which are named by
KATA_TEST_SOLO5_HVT and KATA_TEST_SOLO5_SPT: frames come and go, and nothing is left."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kata_runtime.unikernel.description import PREFIX
from network_bed import PodNetwork
from unikernel import FRAMES_SPT, build_unikernel
from unikernel_description import described
from unikernel_image import BINARY
from unikernel_node import TABLE, UnikernelNode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs /dev/net/tun"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
]

MAC = "02:00:00:00:00:44"
MTU = 1400
ETH_P_ALL = 0x0003
"""What a port of a bridge shows of what comes in: the bridge takes it before protocols get any."""
LAST = bytes.fromhex("710000000001")
"""The destination of a frame after which tests/guests/commands.c ends: it begins with "q"."""


MONITORS = {"dragonball": "hvt", "solo5-hvt": "hvt", "solo5-spt": "spt"}


@pytest.fixture(scope="module", params=MONITORS)
def node(request: pytest.FixtureRequest) -> Iterator[UnikernelNode]:
    table = TABLE
    if request.param != "dragonball":
        variable = f"KATA_TEST_{request.param.upper().replace('-', '_')}"
        program = os.environ.get(variable) or shutil.which(request.param)
        if program is None:
            pytest.skip(f"needs {request.param} 0.11 or newer, on PATH or named by {variable}")
        table = f'path = "{program}"\n'
    with closing(UnikernelNode(request.param, table)) as made:
        yield made


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    """What the image says that it is for."""
    return MONITORS[request.node.callspec.params["node"]]


@pytest.fixture
def image(node: UnikernelNode, target: str, tmp_path: Path) -> str:
    source = {"source": FRAMES_SPT} if target == "spt" else {}
    return node.add_image("frames", build_unikernel(tmp_path, "NET", **source))


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[PodNetwork]:
    with closing(PodNetwork(tmp_path)) as made:
        made.wire("eth0", "10.9.0.2/24", mac=MAC, mtu=MTU)
        yield made


def frame(destination: bytes, source: str) -> bytes:
    """An IPv4 packet from the guest, of a protocol for experiments."""
    addresses = socket.inet_aton(source) + socket.inet_aton("10.9.0.1")
    header = struct.pack(">BBHHHBBH", 0x45, 0, 60, 0, 0, 64, 253, 0) + addresses
    return destination + bytes.fromhex(MAC.replace(":", "")) + b"\x08\x00" + header + bytes(40)


def wire_of(pod: PodNetwork) -> socket.socket:
    """The other end of the pod's interface: all that comes out of it, and what goes in."""
    peer = next(line.split(": ")[1].partition("@")[0] for line in _veths(pod))

    def made() -> int:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        wire.bind((peer, ETH_P_ALL))
        return wire.detach()

    return socket.socket(fileno=pod.node.call_with_descriptor(made))


def _veths(pod: PodNetwork) -> list[str]:
    return [line for line in pod.node.ip("-o", "link", "show", "type", "veth").splitlines() if line]


def echoed(wire: socket.socket, sent: bytes, ended: Future[object]) -> bool:
    """Send a frame until it comes back, or the unikernel has ended."""
    while True:
        wire.send(sent)
        while select.select([wire], [], [], 0.2)[0]:
            data, sender = wire.recvfrom(1 << 16)
            if data == sent and sender[2] != socket.PACKET_OUTGOING:
                return True
        if ended.done():
            return False


def test_frames_come_and_go(node: UnikernelNode, pod: PodNetwork, image: str, target: str) -> None:
    before = pod.pod.state()
    keys = described(binary=BINARY, hypervisor=target, unikernelType="unikraft")
    options = ("--with-ns", f"network:{pod.pod.path}")
    with ThreadPoolExecutor(1) as worker, wire_of(pod) as wire:
        running: Future[object] = worker.submit(node.run, image, "frames", annotations=keys, options=options)
        assert echoed(wire, frame(bytes.fromhex("020000000001"), "10.9.0.2"), running)
        # It ends after this one, which is not let out: its source is another's.
        assert not echoed(wire, frame(LAST, "10.9.0.7"), running)
        result = running.result()
    assert (result.returncode, result.stderr) == (0, ""), result  # type: ignore[attr-defined]
    assert result.stdout == f"{MAC.replace(':', '')}{MTU:04x}\n"  # type: ignore[attr-defined]
    assert pod.pod.state() == before


def test_without_a_kind_it_is_refused(node: UnikernelNode, pod: PodNetwork, image: str, target: str) -> None:
    before = pod.pod.state()
    keys = described(binary=BINARY, hypervisor=target)
    options = ("--with-ns", f"network:{pod.pod.path}")
    result = node.run(image, "frames", annotations=keys, options=options)
    assert result.returncode != 0
    assert f"annotation has no {PREFIX}unikernelType" in result.stderr
    assert pod.pod.state() == before
