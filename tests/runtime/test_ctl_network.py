"""`kata-ctl network`: what it makes of both sides' answers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from kata_agent.protos import agent_pb2, types_pb2
from kata_runtime.broker.pod_identity import INIT
from kata_runtime.broker.pod_network import RECORD_NAME
from kata_runtime.ctl import network, running
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox
from kata_runtime.network.model import Address, Link, Namespace, Route
from kata_runtime.network.plan import MACVTAP, TCFILTER, Attachment, Plan
from kata_runtime.network.record import Record

POD = RecordedSandbox("pod1", "k8s.io", "/nowhere", "/nowhere.sock", ())
ETH0 = Link(2, "eth0", "veth", "02:00:00:00:00:02", 1450, 1, (Address("10.9.0.2", 24),))
DEFAULT = Route(2, "", 2, "10.9.0.1")
PLAN = Plan((Attachment(ETH0, "tap0_kata", TCFILTER),), (DEFAULT,))


def guests(mtu: int = 1450, address: str = "10.9.0.2") -> tuple[agent_pb2.Interfaces, agent_pb2.Routes]:
    """What the guest answers."""
    addresses = [types_pb2.IPAddress(address=address, mask="24")]
    eth0 = types_pb2.Interface(name="eth0", hwAddr=ETH0.mac, mtu=mtu, IPAddresses=addresses)
    routes = [types_pb2.Route(gateway="10.9.0.1", device="eth0")]
    return agent_pb2.Interfaces(Interfaces=[eth0]), agent_pb2.Routes(Routes=routes)


def show(
    report: network.PodReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    as_json: bool = False,
) -> tuple[int, str]:
    """Run the command where there is this one pod; returns its exit status and output."""
    monkeypatch.setattr(running, "running_sandboxes", lambda: [POD])
    monkeypatch.setattr(network, "report_of", lambda _: report)
    status = network.run(argparse.Namespace(pod="pod", json=as_json))
    return status, capsys.readouterr().out


def test_equal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = show(network.compare(POD, PLAN, (), *guests()), monkeypatch, capsys)
    assert status == network.EQUAL
    rows = [line.split() for line in text.splitlines()]
    assert ["MTU", "1450", "1450"] in rows
    assert ["address", "10.9.0.2/24", "10.9.0.2/24"] in rows
    assert "differs" not in text


def test_different(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = network.compare(POD, PLAN, (), *guests(mtu=1500, address="10.9.0.3"))
    status, text = show(report, monkeypatch, capsys)
    assert status == network.DIFFERENT
    rows = [line.split() for line in text.splitlines()]
    assert ["address", "10.9.0.2/24", "-"] in rows
    assert ["address", "-", "10.9.0.3/24"] in rows
    assert "  differs: eth0 has the MTU 1500 in the guest, and 1450 outside" in text.splitlines()


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = network.compare(POD, PLAN, ["net1"], *guests())
    status, text = show(report, monkeypatch, capsys, as_json=True)
    assert status == network.DIFFERENT
    (pod,) = json.loads(text)
    assert [interface["name"] for interface in pod["interfaces"]] == ["eth0", "net1"]
    assert pod["interfaces"][0]["namespace"] == pod["interfaces"][0]["guest"]
    assert pod["interfaces"][1]["namespace"] is None
    assert pod["differences"] == ["the namespace has no interface net1 any more"]


def test_what_a_guest_says_is_printed_without_what_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = network.compare(POD, PLAN, (), *guests(address="\x1b[2J"))
    status, text = show(report, monkeypatch, capsys)
    assert status == network.DIFFERENT
    assert "\x1b" not in text


def test_a_pod_to_which_nothing_was_attached(tmp_path: Path) -> None:
    init = (RecordedProcess(INIT, os.getpid()),)
    pod = RecordedSandbox("pod1", "k8s.io", str(tmp_path), "/nowhere.sock", init)
    assert network.report_of(pod) == network.PodReport("pod1", "k8s.io")
    (tmp_path / RECORD_NAME).touch()
    assert network.report_of(pod) == network.PodReport("pod1", "k8s.io")


def test_a_pod_that_has_ended_meanwhile(tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).touch()
    init = (RecordedProcess(INIT, 2**22 + 1),)
    pod = RecordedSandbox("pod1", "k8s.io", str(tmp_path), "/nowhere.sock", init)
    with pytest.raises(network.PodUnreadableError, match="cannot read the network namespace of pod1"):
        network.report_of(pod)


def test_no_such_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "running_sandboxes", lambda: [POD])
    with pytest.raises(CommandError, match="no running sandbox has an id that starts with 'other'"):
        network.run(argparse.Namespace(pod="other", json=False))


def test_a_record_says_what_the_guest_is_to_have_now() -> None:
    """Of a redirected interface what it has now, of one below a macvtap what it had, of one gone nothing."""
    below = Link(3, "net1", "veth", "02:00:00:00:00:03", 1500, 1, (Address("10.8.0.2", 24),))
    gone = Link(4, "net2", "veth", "02:00:00:00:00:04", 1500, 1, (Address("10.7.0.2", 24),))
    record = Record(
        (
            Attachment(ETH0, "tap0_kata", TCFILTER),
            Attachment(below, "tap1_kata", MACVTAP),
            Attachment(gone, "tap2_kata", TCFILTER),
        ),
        (Route(2, "10.8.0.0/24", 3, protocol=2), Route(2, "10.70.0.0/16", 3, "10.8.0.1")),
    )
    changed = Link(2, "eth0", "veth", ETH0.mac, 1400, 1, ETH0.addresses)
    emptied = Link(3, "net1", "veth", "02:00:00:00:00:99", 1500, 1)
    plan = record.plan(Namespace((changed, emptied), (DEFAULT, Route(2, "10.9.0.0/24", 2, protocol=2))))
    assert [entry.link for entry in plan.attachments] == [changed, below]
    assert [str(route) for route in plan.routes] == ["default by 10.9.0.1", "10.70.0.0/16 by 10.8.0.1"]
