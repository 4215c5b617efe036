"""Networks that come between Create and Start, as `ctr run --cni`, nerdctl and Docker give them; hooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kata_agent.ttrpc.status import RpcError
from network_bed import Netns, ip
from node import IMAGE, RUNTIME, Client, Node
from oci_bundle import make_process, make_spec
from shim_harness import Lab, Shim
from shim_process import Process

pytestmark = pytest.mark.integration

PLUGINS = Path("/usr/lib/cni")
GATEWAYS = ("10.238.5.1", "fd00:ed6::1")

OTHERS = ("veth", "kt-")
"""Interfaces that other tests make there, and nobody here."""


def host_network() -> str:
    """What this host's own namespace holds: nobody may change it."""
    links = json.loads(ip("-j", "address", "show"))
    facts = [
        (link["ifname"], [address["local"] for address in link["addr_info"]])
        for link in links
        if not link["ifname"].startswith(OTHERS)
    ]
    routes = (ip("route", "show") + ip("-6", "route", "show")).splitlines()
    facts += [(line, []) for line in routes if not any(f" dev {name}" in line for name in OTHERS)]
    return json.dumps(facts)


@pytest.fixture(autouse=True)
def host_unchanged() -> Iterator[None]:
    """Neither a link, nor an address, nor a route is put into the host's own namespace."""
    before = host_network()
    yield
    assert host_network() == before


# -- ctr run --cni -----------------------------------------------------------------------------------------


class CniClient:
    """ctr in a network namespace of its own, with CNI's configuration and programs where it looks."""

    def __init__(self, directory: Path) -> None:
        self.namespace = Netns("ctr")
        self.addresses = directory / "addresses"
        etc, opt = directory / "etc", directory / "opt"
        (etc / "cni/net.d").mkdir(parents=True)
        (opt / "cni/bin").mkdir(parents=True)
        for program in PLUGINS.iterdir():
            (opt / "cni/bin" / program.name).symlink_to(program)
        bridge = {
            "type": "bridge",
            "bridge": "kt-late0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.addresses),
                "ranges": [[{"subnet": "10.238.5.0/24"}], [{"subnet": "fd00:ed6::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        network = {"cniVersion": "0.4.0", "name": "kt", "plugins": [bridge]}
        (etc / "cni/net.d/10-kt.conflist").write_text(json.dumps(network))
        mounts = [f"mount -t overlay -o lowerdir={etc}:/etc o /etc"]
        mounts.append(f"mount -t overlay -o lowerdir={opt}:/opt o /opt")
        mounts.append("mount -t tmpfs none /var/lib/cni 2>/dev/null || :")
        self._prefix = [
            *("nsenter", f"--net={self.namespace.path}", "unshare", "--mount", "sh", "-c"),
            f'{" && ".join(mounts[:2])} && {mounts[2]}; exec "$@"',
            "sh",
        ]

    def run(self, node: Node, *command: str) -> Client:
        """`ctr run --cni`, in the background."""
        container = node.new_id()
        argv = ("run", "--rm", "--cni", "--runtime", RUNTIME, IMAGE, container, *command)
        return self.ctr(node, *argv, container=container)

    def ctr(self, node: Node, *arguments: str, container: str = "") -> Client:
        """A ctr of this namespace, in the background."""
        return Client([*self._prefix, *node.command(*arguments)], container)

    def leases(self) -> list[str]:
        """The addresses that CNI has given and not taken back."""
        names = [path.name for path in (self.addresses / "kt").glob("*")]
        return sorted(name for name in names if re.fullmatch(r"[0-9a-f.:]+", name))

    def veths(self) -> list[str]:
        """What connects pods with the bridge."""
        links = json.loads(self.namespace.ip("-j", "link", "show"))
        return [link["ifname"] for link in links if link["ifname"].startswith("veth")]


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[CniClient]:
    if not (PLUGINS / "bridge").exists() or not shutil.which("nsenter"):
        pytest.skip(f"{PLUGINS}/bridge is missing: run make packages")
    client = CniClient(tmp_path)
    try:
        yield client
    finally:
        client.namespace.close()


PINGS = "; ".join(f"ping -c 1 -W 9 {gateway} | grep -o ' 0% packet loss'" for gateway in GATEWAYS)


@pytest.mark.usefixtures("nothing_left")
def test_a_container_of_ctr_has_cnis_network(each_node: Node, cni: CniClient) -> None:
    script = f"ip address show eth0; ip route; {PINGS}; echo up; exec sleep 3600"
    with cni.run(each_node, "sh", "-c", script) as client:
        each_node.until(lambda: client.output.endswith("up\n") or client.ended, "its output")
        assert not client.ended, client.errors
        leases = cni.leases()
        assert len(leases) == 2
        for lease in leases:
            assert re.search(f" {lease}/(24|64) ", client.output), client.output
        assert f"default via {GATEWAYS[0]} dev eth0" in client.output
        assert client.output.count(" 0% packet loss") == 2, client.output
        assert "network differs" not in each_node.log()
        argv = [sys.executable, "-m", "kata_runtime.ctl.main", "network", client.container]
        shown = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (shown.returncode, shown.stderr) == (0, ""), shown
        for lease in leases:
            assert shown.stdout.count(f" {lease}/") == 2, shown.stdout
        # Of version 2, it calls CNI too.
        with cni.ctr(each_node, "task", "kill", "--signal", "SIGKILL", client.container) as killer:
            assert killer.wait() == 0, killer.errors
        client.wait()
    assert cni.leases() == []
    each_node.until(lambda: cni.veths() == [], "the end of the pod's namespace, and of its veth")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("role", ["shim", "broker", "qemu"])
def test_a_killed_process_leaves_nothing_of_it(node: Node, cni: CniClient, role: str) -> None:
    with cni.run(node, "sh", "-c", "echo up; exec sleep 3600") as client:
        node.until(lambda: client.output == "up\n" or client.ended, "its output")
        assert not client.ended, client.errors
        node.kill(client.container, role)
        client.wait()
        node.discard(client.container)
    node.until(lambda: cni.veths() == [], "the end of the pod's namespace, and of its veth")


# -- whoever attaches by the pid that Create answers -------------------------------------------------------


@pytest.fixture
async def nothing_left_of(lab: Lab) -> AsyncIterator[None]:
    before = lab.leftovers()
    yield
    assert before.settle() == []


@pytest.fixture
def outside() -> Iterator[Netns]:
    """A namespace for the other ends of veths."""
    namespace = Netns("out")
    try:
        yield namespace
    finally:
        namespace.close()


async def ended(shim: Shim, process: Process) -> None:
    """Kill it, and end its shim."""
    await shim.task("Kill", id=shim.id, signal=signal.SIGKILL)
    await process.finish()
    await shim.task("Shutdown", id=shim.id)
    await shim.ended()
    await shim.close()


def shell(lab: Lab, name: str, script: str, **changes: Any) -> dict[str, Any]:
    return make_spec(make_process("sh", "-c", script), cgroup=f"/{lab.namespace}/{name}", **changes)


@pytest.mark.usefixtures("nothing_left_of")
async def test_what_is_attached_to_the_answered_pid_is_in_the_guest(lab: Lab, outside: Netns) -> None:
    name = lab.new_id("late")
    script = "cat /sys/class/net/eth0/address; ip -o -4 address show dev eth0; sleep 1000"
    shim = await lab.start_shim(name, shell(lab, name, script))
    process = await shim.create(container_id=name)
    pid = (await shim.task("State", id=name)).pid
    namespace = os.stat(f"/proc/{pid}/ns/net").st_ino
    assert namespace != os.stat("/proc/self/ns/net").st_ino
    assert Path(f"/proc/{pid}/comm").read_text() == "kata-init\n"
    outside.ip("link", "add", "v0", "type", "veth", "peer", "name", "eth0", "address", "02:00:00:00:00:07")
    outside.ip("link", "set", "eth0", "netns", str(pid))
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    await anyio.run_process([*inside, "address", "add", "10.1.2.3/24", "dev", "eth0"])
    await anyio.run_process([*inside, "link", "set", "eth0", "up"])
    await process.start()
    assert (await shim.task("State", id=name)).pid == pid
    output = await process.streams.stdout.read_until(b"10.1.2.3/24")  # type: ignore[union-attr]
    assert b"02:00:00:00:00:07" in output
    vmm = (await shim.task("Pids", id=name)).processes[0].pid
    assert os.stat(f"/proc/{vmm}/ns/net").st_ino == namespace
    await ended(shim, process)


@pytest.mark.usefixtures("nothing_left_of")
async def test_a_vmm_outside_of_the_pods_network_and_its_warning(lab: Lab, outside: Netns) -> None:
    name = lab.new_id("outside")
    configuration = lab.configure("outside", disable_new_netns=True, internetworking_model="none")
    environment = {"KATA_CONF_FILE": str(configuration)}
    script = "ls /sys/class/net; echo end; sleep 1000"
    shim = await lab.start_shim(name, shell(lab, name, script), environment=environment)
    process = await shim.create(container_id=name)
    pid = (await shim.task("State", id=name)).pid
    ours = os.stat("/proc/self/ns/net").st_ino
    assert os.stat(f"/proc/{pid}/ns/net").st_ino != ours
    outside.ip("link", "add", "v0", "type", "veth", "peer", "name", "eth0")
    outside.ip("link", "set", "eth0", "netns", str(pid))
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "address", "add", "10.1.2.3/24", "dev", "eth0"]
    await anyio.run_process(inside)
    await process.start()
    output = await process.streams.stdout.read_until(b"end")  # type: ignore[union-attr]
    assert b"eth0" not in output
    vmm = (await shim.task("Pids", id=name)).processes[0].pid
    assert os.stat(f"/proc/{vmm}/ns/net").st_ino == ours
    assert "has the interface eth0 (10.1.2.3/24), which the guest does not get" in shim.log
    await ended(shim, process)


@pytest.mark.usefixtures("nothing_left_of")
async def test_what_cannot_be_attached_is_starts_error(lab: Lab) -> None:
    name = lab.new_id("odd")
    shim = await lab.start_shim(name, shell(lab, name, "sleep 1000"))
    process = await shim.create(container_id=name)
    pid = (await shim.task("State", id=name)).pid
    for words in ("link add odd type bridge", "address add 10.9.9.9/24 dev odd"):
        await anyio.run_process(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words.split()])
    with pytest.raises(RpcError, match="cannot attach the interface odd"):
        await process.start()
    assert (await shim.task("Wait", id=name)).exit_status == 137
    await shim.task("Delete", id=name)
    process.streams.close()
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()


# -- hooks -------------------------------------------------------------------------------------------------

ATTACH = """
set -e
state=$(cat)
echo "$state" > {directory}/create
pid=$(echo "$state" | sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p')
ip -n {outside} link add v0 type veth peer name eth0
ip -n {outside} link set eth0 netns "$pid"
nsenter --net=/proc/$pid/ns/net ip address add 10.1.2.4/24 dev eth0
nsenter --net=/proc/$pid/ns/net ip link set eth0 up
"""


def hook(script: str, **fields: Any) -> dict[str, Any]:
    path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": [path], **fields}


def written(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.usefixtures("nothing_left_of")
async def test_hooks_give_the_pod_its_network_before_it_boots(
    lab: Lab, outside: Netns, tmp_path: Path
) -> None:
    name = lab.new_id("hooked")
    hooks = {
        "createRuntime": [hook(ATTACH.format(directory=tmp_path, outside=outside.name))],
        "createContainer": [hook(f"ip -o link show > {tmp_path}/links")],
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo in the guest > /tmp/hook"]}],
        "poststart": [hook(f"cat > {tmp_path}/start")],
        "poststop": [hook(f"cat > {tmp_path}/stop")],
    }
    script = "cat /tmp/hook; ip -o -4 address show dev eth0; exec sleep 1000"
    spec = shell(lab, name, script, hooks=hooks, annotations={"nerdctl/name": "web"})
    shim = await lab.start_shim(name, spec)
    process = await shim.create(container_id=name)
    pid = (await shim.task("State", id=name)).pid
    assert "qemu" in os.readlink(f"/proc/{(await shim.task('Pids', id=name)).processes[0].pid}/exe")
    state = written(tmp_path / "create")
    assert state == {
        "ociVersion": spec["ociVersion"],
        "id": name,
        "status": "creating",
        "pid": pid,
        "bundle": str(shim.bundle),
        "annotations": {"nerdctl/name": "web"},
    }
    assert "eth0" in (tmp_path / "links").read_text()
    assert not (tmp_path / "start").exists()
    await process.start()
    assert written(tmp_path / "start") == {**state, "status": "running"}
    output = await process.streams.stdout.read_until(b"10.1.2.4/24")  # type: ignore[union-attr]
    assert b"in the guest" in output
    await shim.task("Kill", id=name, signal=signal.SIGKILL)
    assert not (tmp_path / "stop").exists()
    await process.finish()
    del state["pid"]
    assert written(tmp_path / "stop") == {**state, "status": "stopped"}
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()


@pytest.mark.usefixtures("nothing_left_of")
async def test_poststop_hooks_run_after_the_shim_and_broker_were_killed(lab: Lab, tmp_path: Path) -> None:
    name = lab.new_id("killed")
    spec = shell(lab, name, "sleep 1000", hooks={"poststop": [hook(f"cat >> {tmp_path}/stop")]})
    shim = await lab.start_shim(name, spec)
    process = await shim.create(container_id=name)
    await process.start()
    pid = (await process.call("Connect")).shim_pid
    broker = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    os.kill(broker, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await shim.ended()
    for _ in range(2):
        answer = await lab.launch("delete", shim.bundle, name, "-bundle", str(shim.bundle))
        assert (answer.returncode, answer.stderr) == (0, b"")
    assert written(tmp_path / "stop")["status"] == "stopped"
    process.streams.close()
    await shim.close()


@pytest.mark.usefixtures("nothing_left_of")
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (hook("echo no network here >&2; exit 4"), "failed with exit status 4: no network here"),
        (hook("echo begun; sleep 98765 & wait", timeout=1), "its timeout of 1 s was over: begun"),
        ({"path": "/no/such/hook"}, "the createRuntime hook /no/such/hook cannot be run: No such file"),
    ],
)
async def test_a_hook_that_fails_is_creates_error(
    lab: Lab, tmp_path: Path, entry: dict[str, Any], said: str
) -> None:
    name = lab.new_id("failing")
    hooks = {"createRuntime": [entry], "poststop": [hook(f"touch {tmp_path}/stop")]}
    shim = await lab.start_shim(name, shell(lab, name, "sleep 1000", hooks=hooks))
    with pytest.raises(RpcError) as caught:
        await shim.create(container_id=name)
    assert said in caught.value.message
    await shim.task("Shutdown", id=name)
    await shim.ended()
    await shim.close()
    assert (tmp_path / "stop").exists()
    assert (await anyio.run_process(["pgrep", "-f", "^sleep 98765$"], check=False)).stdout == b""
