"""A network namespace that CNI's bridge plugin attaches, and what a pod in it must have of it."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from network_bed import Netns, ip

PLUGINS = Path("/usr/lib/cni")
NUMBER = 1 + secrets.randbelow(250)
"""Of the bridge and its networks: it is in the host's own namespace, where the same test may run twice."""

BRIDGE = f"kt-cni{NUMBER}"
GATEWAYS = (f"10.237.{NUMBER}.1", f"fd00:ed5:{NUMBER}::1")
LOOPBACK_PORT = 8081
PAGE = "a page of the guest"
FLOOD = 5000


class CniPod:
    """A network namespace, attached by CNI's bridge plugin. directory: for addresses, one for all pods."""

    def __init__(self, directory: Path) -> None:
        self.namespace = Netns("cni")
        self.namespace.ip("link", "set", "lo", "up")  # as CNI's plugin loopback, which the CRI always runs
        subnets = [[{"subnet": f"10.237.{NUMBER}.0/24"}], [{"subnet": f"fd00:ed5:{NUMBER}::/64"}]]
        self._configuration = {
            "cniVersion": "1.0.0",
            "name": "kt",
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory),
                "ranges": subnets,
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        result = self._call("ADD")
        self.addresses = [entry["address"] for entry in result["ips"]]
        self.mac = next(link["mac"] for link in result["interfaces"] if link["name"] == "eth0")

    def _call(self, command: str) -> Any:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.namespace.name,
            "CNI_NETNS": str(self.namespace.path),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [PLUGINS / "bridge"],
            input=json.dumps(self._configuration),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout else {}

    def settle(self) -> None:
        """Wait until duplicate address detection is over, which changes what the namespace says of itself."""
        deadline = time.monotonic() + 10
        while "tentative" in self.namespace.ip("address", "show"):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        """Detach it; the bridge goes with the last pod."""
        self._call("DEL")
        self.namespace.close()
        if not ip("link", "show", "master", BRIDGE):
            ip("link", "delete", BRIDGE)


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[CniPod]:
    if not (PLUGINS / "bridge").exists() or not shutil.which("ip"):
        pytest.skip(f"{PLUGINS}/bridge is missing: run make packages")
    pod = CniPod(tmp_path / "addresses")
    try:
        pod.settle()
        yield pod
    finally:
        pod.close()


def differences(before: Any, after: Any) -> list[str]:
    """The lines of one state that the other has not."""
    one, other = (json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (before, after))
    return [
        line for line in difflib.unified_diff(one, other, n=0) if not line.startswith(("---", "+++", "@@"))
    ]


def compare_by_command(container: str, cni: CniPod) -> None:
    """kata-ctl network says that both are equal, and names what is changed on one side."""

    def command() -> tuple[int, Any]:
        argv = [sys.executable, "-m", "kata_runtime.ctl.main", "network", container, "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert not done.stderr
        return done.returncode, json.loads(done.stdout)[0]

    status, found = command()
    assert (status, found["differences"]) == (0, [])
    (eth0,) = found["interfaces"]
    for side in ("namespace", "guest"):
        assert eth0[side]["mac"] == cni.mac
        assert set(cni.addresses) <= set(eth0[side]["addresses"])
        assert f"default via {GATEWAYS[0]} dev eth0" in eth0[side]["routes"]
    cni.namespace.ip("address", "add", "10.236.6.7/24", "dev", "eth0")
    status, found = command()
    assert (status, found["differences"]) == (1, ["eth0 lacks the address 10.236.6.7/24 in the guest"])
    cni.namespace.ip("address", "delete", "10.236.6.7/24", "dev", "eth0")


def holders(namespace: Netns) -> list[str]:
    """What keeps a pod's namespace: processes in it, descriptors, and mounts elsewhere than /run/netns."""
    wanted = os.stat(namespace.path)
    found = []
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")):
        with suppress(OSError):
            there = path.stat()
            if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(str(path))
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            found += [
                f"{path}: {line}"
                for line in path.read_text().splitlines()
                if f"net:[{wanted.st_ino}]" in line and namespace.name not in line
            ]
    return found


def forward_ports(cni: CniPod) -> None:
    """What containerd does for port-forwarding: it enters the namespace, and dials localhost there."""

    def dial(address: str, port: int) -> socket.socket:
        made = cni.namespace.call_with_descriptor(lambda: socket.create_connection((address, port)).detach())
        sock = socket.socket(fileno=made)
        sock.settimeout(60)
        return sock

    for address, port in (("127.0.0.1", LOOPBACK_PORT), ("::1", 80), ("127.0.0.1", 80)):
        with dial(address, port) as connection:
            connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
            assert answer.endswith(f"\r\n{PAGE}\n".encode())
    with dial("127.0.0.1", 9) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def options(cni: CniPod) -> tuple[str, ...]:
    return ("--with-ns", f"network:{cni.namespace.path}")


SERVER = (
    f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; "
    f"httpd -p 127.0.0.1:{LOOPBACK_PORT} -h /tmp/w; echo up; exec sleep 3600"
)
"""A shell's command: serves a page, another one on its loopback only, and says that it does."""


def check_reach(cni: CniPod, inside: Callable[..., str]) -> None:
    """The addresses are CNI's, the gateways answer, and the page is had from the host.

    inside: runs a command in the container; returns what it prints.
    """
    shown = inside("ip", "address", "show", "eth0")
    assert cni.mac in shown
    for address in cni.addresses:
        assert f" {address} " in shown
    assert "tentative" not in shown
    for gateway in GATEWAYS:
        assert " 0% packet loss" in inside("ping", "-c", "1", "-W", "5", gateway)
    four, six = (address.split("/")[0] for address in cni.addresses)
    fetch_page(four, cni, inside)
    fetch_page(f"[{six}]", cni, inside)
    flood(four)
    fetch_page(four, cni, inside)


def flood(address: str) -> None:
    """Send a guest more than it takes, to a port where nobody listens: that must stop nothing later."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(FLOOD):
            with suppress(OSError):  # what comes back says that nobody listens
                sock.sendto(bytes(1400), (address, 9))


def fetch_page(address: str, cni: CniPod, inside: Callable[..., str]) -> None:
    """Have the guest's page from the host; else the error says where packets went."""
    try:
        with urllib.request.urlopen(f"http://{address}/index.html", timeout=60) as answer:
            assert answer.read().decode() == f"{PAGE}\n"
    except OSError as error:
        raise AssertionError(f"{address}: {error}\n{_counters(cni, inside)}") from error


def _counters(cni: CniPod, inside: Callable[..., str]) -> str:
    """Where packets went: what guest, namespace, filters and bridge have counted."""
    commands = (
        "ip -s link",
        "tc -s qdisc",
        *(f"tc -s filter show dev {name} ingress" for name in ("eth0", "tap0_kata")),
    )
    counted = [cni.namespace.run(*command.split()).stdout for command in commands]
    counted += [ip("-s", "link", "show", "master", BRIDGE), ip("neigh", "show", "dev", BRIDGE)]
    guest = "netstat -tln; cat /proc/net/dev /proc/net/snmp /proc/net/snmp6 /proc/interrupts; dmesg | tail -5"
    return "\n".join([*counted, inside("sh", "-c", guest)])
