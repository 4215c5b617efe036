"""A container with a network of CNI's bridge plugin, on QEMU: what it reaches, and what is left of it."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from network_bed import Netns
from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

PLUGINS = Path("/usr/lib/cni")
BRIDGE = "kt-cni0"
GATEWAYS = ("10.237.5.1", "fd00:ed5::1")
PAGE = "a page of the guest"


class CniPod:
    """A network namespace, attached by CNI's bridge plugin."""

    def __init__(self, directory: Path) -> None:
        self.namespace = Netns("cni")
        subnets = [[{"subnet": "10.237.5.0/24"}], [{"subnet": "fd00:ed5::/64"}]]
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
        self._call("DEL")
        self.namespace.close()
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


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
    """The lines of one state that the other has not.

    But for a link's transmit queue length: the kernel sets one of 0 to 1000 with the first qdisc of the link
    (net/sched/sch_api.c), and CNI makes its links with 0.
    """
    for state in (before, after):
        for link in state["links"]:
            link.pop("txqlen", None)
    one, other = (json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (before, after))
    return [
        line for line in difflib.unified_diff(one, other, n=0) if not line.startswith(("---", "+++", "@@"))
    ]


def options(cni: CniPod) -> tuple[str, ...]:
    return ("--with-ns", f"network:{cni.namespace.path}")


def test_a_container_has_cnis_network(node: Node, cni: CniPod) -> None:
    before = cni.namespace.state()
    script = f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; echo up; exec sleep 3600"
    with node.running("sh", "-c", script, options=options(cni)) as client:
        node.until(lambda: client.output == "up\n", "its output")

        def inside(*command: str) -> str:
            return node.ctr("task", "exec", "--exec-id", node.new_id(), client.container, *command).stdout

        shown = inside("ip", "address", "show", "eth0")
        assert cni.mac in shown
        for address in cni.addresses:
            assert f" {address} " in shown
        assert "tentative" not in shown
        for gateway in GATEWAYS:
            assert " 0% packet loss" in inside("ping", "-c", "1", "-W", "5", gateway)
        for address in (cni.addresses[0].split("/")[0], f"[{cni.addresses[1].split('/')[0]}]"):
            with urllib.request.urlopen(f"http://{address}/index.html", timeout=10) as answer:
                assert answer.read().decode() == f"{PAGE}\n"
        vmm = node.pids(client.container)["qemu"]
        assert os.stat(f"/proc/{vmm}/ns/net").st_ino == os.stat(cni.namespace.path).st_ino
        assert not [line for line in node.log().splitlines() if "network differs" in line]
        node.ctr("task", "kill", "--signal", "SIGKILL", client.container)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []


@pytest.mark.parametrize("role", ["shim", "broker"])
def test_a_killed_process_leaves_the_namespace_as_it_was(node: Node, cni: CniPod, role: str) -> None:
    before = cni.namespace.state()
    with node.running("sh", "-c", "echo up; exec sleep 3600", options=options(cni)) as client:
        node.until(lambda: client.output == "up\n", "its output")
        assert cni.namespace.state() != before
        node.kill(client.container, role)
        client.wait()
    node.until(lambda: not node.sandboxes(), "the sandbox's end")
    assert differences(before, cni.namespace.state()) == []


def test_the_hosts_network_is_refused(node: Node) -> None:
    for given in (("--net-host",), ("--with-ns", "network:/proc/self/ns/net")):
        result = node.run("true", options=given)
        assert result.returncode != 0
        assert "cannot use the host's network" in result.stderr


def test_what_cannot_be_attached_is_refused(node: Node, cni: CniPod) -> None:
    cni.namespace.ip("link", "add", "odd", "type", "bridge")
    cni.namespace.ip("address", "add", "10.9.9.9/24", "dev", "odd")
    before = cni.namespace.state()
    result = node.run("true", options=options(cni))
    assert result.returncode != 0
    assert "cannot attach the interface odd" in result.stderr
    assert differences(before, cni.namespace.state()) == []
