"""The CRI with CNI's bridge, by crictl: what a pod reaches, what reaches it, and what is left of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_node import GATEWAYS, Cri, require
from node import Client

pytestmark = pytest.mark.integration

PAGE = "a page of the guest"
LOOPBACK_PORT, HOST_PORT, CLOSED_PORT = 8081, 8088, 9


@pytest.fixture(scope="module")
def cri(tmp_path_factory: pytest.TempPathFactory, guest_image: Path) -> Iterator[Cri]:
    require()
    made = Cri(tmp_path_factory.mktemp("cri"), guest_image)
    try:
        yield made
    finally:
        made.bed.close()


class Pod:
    """A pod of two containers: one serves a page, the other is its client. addresses: CNI's."""

    def __init__(self, cri: Cri) -> None:
        self.cri = cri
        file = cri.pod_file("web", ports=[{"protocol": 0, "container_port": 80, "host_port": HOST_PORT}])
        self.id = cri.run("runp", file)
        script = (
            f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; "
            f"httpd -p 127.0.0.1:{LOOPBACK_PORT} -h /tmp/w; exec sleep 3600"
        )
        self.server = cri.start(self.id, file, "server", script)
        self.client = cri.start(self.id, file, "client", "exec sleep 3600")
        self.result = cri.record(self.id, "ADD")["result"]
        self.addresses = [entry["address"] for entry in self.result["ips"]]

    def inside(self, *command: str) -> str:
        """Run a command in the client's container; returns what it prints."""
        return self.cri.run("exec", self.client, *command)


@pytest.fixture(scope="module")
def pod(cri: Cri) -> Iterator[Pod]:
    made = Pod(cri)
    yield made
    if cri.run("pods", "-q"):
        cri.run("rmp", "-f", made.id)


def test_the_addresses_are_cnis(pod: Pod) -> None:
    shown = pod.inside("ip", "address", "show", "eth0")
    mac = next(link["mac"] for link in pod.result["interfaces"] if link["name"] == "eth0")
    assert mac in shown
    assert len(pod.addresses) == 2
    for address in pod.addresses:
        assert f" {address} " in shown
    assert "tentative" not in shown
    status = json.loads(pod.cri.run("inspectp", pod.id))["status"]["network"]
    told = [status["ip"], *(entry["ip"] for entry in status["additionalIps"])]
    assert told == [address.split("/")[0] for address in pod.addresses]


def test_the_gateways_answer(pod: Pod) -> None:
    for gateway in GATEWAYS:
        assert " 0% packet loss" in pod.inside("ping", "-c", "1", "-W", "10", gateway)


def test_the_host_reaches_the_pod(pod: Pod) -> None:
    four, six = (address.split("/")[0] for address in pod.addresses)
    for place in (four, f"[{six}]", f"{GATEWAYS[0]}:{HOST_PORT}"):
        assert pod.cri.bed.fetch(f"{place}/index.html") == PAGE


def test_the_pod_reaches_the_host(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("a page of the host\n")
    serve = ("python3", "-um", "http.server", "8000", "--bind", "::", "--directory", str(tmp_path))
    server = [*pod.cri.bed.inside, *serve]
    with Client(server) as client:
        pod.cri.bed.node.until(lambda: "Serving" in client.output or client.ended, "the server")
        for place in (GATEWAYS[0], f"[{GATEWAYS[1]}]"):
            assert pod.inside("wget", "-qO-", f"http://{place}:8000/page") == "a page of the host"


def test_containers_talk_over_localhost(pod: Pod) -> None:
    assert pod.inside("wget", "-qO-", f"http://127.0.0.1:{LOOPBACK_PORT}/index.html") == PAGE


def test_names_are_asked_of_the_pods_servers(pod: Pod) -> None:
    lines = pod.inside("cat", "/etc/resolv.conf").splitlines()
    assert lines == ["search svc.example", "nameserver 10.238.7.53", "options ndots:3"]


def test_exec_gives_output_and_status(pod: Pod) -> None:
    done = pod.cri.call("exec", pod.client, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert "exit code 7" in done.stderr
    assert pod.cri.run("exec", "--sync", pod.client, "hostname")


def test_a_port_is_forwarded_to_the_guests_loopback(pod: Pod) -> None:
    for port in (LOOPBACK_PORT, 80):
        with pod.cri.forwarded(pod.id, port):
            assert pod.cri.bed.fetch("127.0.0.1:18080/index.html") == PAGE


def test_a_closed_port_errs(pod: Pod) -> None:
    with pod.cri.forwarded(pod.id, CLOSED_PORT) as client:
        with pytest.raises(AssertionError):
            pod.cri.bed.fetch("127.0.0.1:18080/index.html")
        pod.cri.bed.node.until(lambda: "connection reset by peer" in client.errors, "its error")


def test_the_pod_ends_and_leaves_its_namespace_as_it_was(pod: Pod) -> None:
    cri, before = pod.cri, pod.cri.record(pod.id, "ADD")
    cri.run("stopp", pod.id)  # codespell:ignore stopp
    assert len(before["namespace"]) > 20
    assert sorted(cri.record(pod.id, "DEL")["namespace"]) == sorted(before["namespace"])
    cri.run("rmp", pod.id)
    assert cri.run("pods", "-q") == ""
    cri.bed.check_empty()
    assert "10.238.7." not in cri.bed.nat(), "the port is still published"


@pytest.mark.parametrize(
    ("namespace", "says"),
    [("network", "network"), ("pid", "processes"), ("ipc", "shared memory and message queues")],
)
def test_what_is_the_hosts_is_refused(cri: Cri, namespace: str, says: str) -> None:
    asked = {"namespace_options": {namespace: 2}}
    done = cri.call("runp", cri.pod_file(f"host-{namespace}", {"security_context": asked}))
    assert done.returncode != 0
    assert f"cannot use the host's {says}" in done.stderr
    cri.bed.check_empty()


def test_a_network_that_the_model_leaves_out_is_told(cri: Cri) -> None:
    pod = cri.run("runp", "--runtime", "bare", cri.pod_file("bare"))
    assert 'internetworking_model is \\"none\\"' in cri.bed.node.log()
    cri.run("rmp", "-f", pod)
    cri.bed.check_empty()
