"""Pods from a template, and the command that makes it, without a machine."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kata_agent.client import AgentClient
from kata_agent.protos import agent_pb2
from kata_configuration import load
from kata_runtime.broker.client import Broker
from kata_runtime.ctl.main import main
from kata_runtime.identity import SandboxIdentity
from kata_runtime.pod import machine_spec
from kata_runtime.pod.linux_boot import LinuxBoot
from kata_runtime.pod.reseed import Reseed
from kata_runtime.template import maker

CONFIGURATION = """
[hypervisor.dragonball]
kernel = "/kernel"
initrd = "/initrd"
shared_fs = "{shared_fs}"
[hypervisor.dragonball.factory]
enable_template = {on}
template_path = "{path}"
[runtime]
hypervisor_name = "dragonball"
agent_name = "kata"
[agent.kata]
"""


class FakeAgent:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def reseed_random_dev(self, request: agent_pb2.ReseedRandomDevRequest) -> None:
        self.asked.append(request)

    async def set_guest_date_time(self, request: agent_pb2.SetGuestDateTimeRequest) -> None:
        self.asked.append(request)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the template is to be."""
    return tmp_path / "vm" / "template"


def write(place: Path, *, on: bool = True, shared_fs: str = "virtio-fs") -> Path:
    """A configuration file with a template."""
    path = place.parents[1] / "configuration.toml"
    path.write_text(CONFIGURATION.format(on=str(on).lower(), path=place, shared_fs=shared_fs))
    return path


async def test_random_numbers_come_before_everything_and_once() -> None:
    agents = [FakeAgent() for _ in range(2)]
    for agent in agents:
        await Reseed().give(cast(AgentClient, agent))
    first, second = agents
    assert len(first.asked[0].data) == len(second.asked[0].data) == 64
    assert first.asked[0].data != second.asked[0].data
    assert abs(first.asked[1].Sec - time.time()) < 600
    assert 0 <= first.asked[1].Usec < 1_000_000


@pytest.mark.parametrize("on", [True, False])
def test_a_machine_starts_from_a_template_where_that_is_configured(place: Path, on: bool) -> None:
    configuration = load(write(place, on=on), check_host=False)
    spec = machine_spec.machine_of(configuration, SandboxIdentity("a", "b", "c"), {}, ())
    assert spec.template == (place if on else None)


@pytest.mark.parametrize(("on", "slots"), [(True, 0), (False, 8)])
def test_a_pod_with_shared_files_has_the_slots_of_its_template(place: Path, on: bool, slots: int) -> None:
    """Which has none: with any of its own it would not start from it."""
    configuration = load(write(place, on=on), check_host=False)
    spec = {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}
    identity, broker = SandboxIdentity("a", "b", "c"), cast(Broker, SimpleNamespace(user=1))
    boot = LinuxBoot(configuration, identity, broker, spec, first=0)
    assert boot._machine_spec.spare_disks == slots


@pytest.mark.parametrize(("shared_fs", "count"), [("virtio-fs", 0), ("none", 1)])
def test_a_template_has_a_place_for_the_disk_of_a_pod_without_shared_files(
    place: Path, shared_fs: str, count: int
) -> None:
    disks = maker.places_of(load(write(place, shared_fs=shared_fs), check_host=False))
    assert [(disk.id, disk.read_only) for disk in disks] == [("rootfs", True)] * count


@pytest.mark.parametrize("action", ["init", "status", "destroy"])
def test_where_templates_are_off_it_says_how_to_turn_them_on(
    place: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["factory", action, "--config", str(write(place, on=False))]) == 1
    assert "set enable_template = true in [hypervisor.dragonball.factory]" in capsys.readouterr().err


def test_without_a_template_the_status_says_how_to_make_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = str(write(place))
    assert main(["factory", "status", "--config", configuration]) == 1
    assert f"there is no template in {place}: run kata-ctl factory init" in capsys.readouterr().err
    assert main(["factory", "destroy", "--config", configuration]) == 0
    assert capsys.readouterr().out == f"{place}: there is none\n"


def test_a_template_that_cannot_be_made_leaves_the_old_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.mkdir(parents=True)
    (place / "state").write_text("old")

    def make(configuration: object, directory: Path) -> str:
        (directory / "memory").write_text("half")
        return "no /dev/kvm"

    monkeypatch.setattr(maker, "make", make)
    assert main(["factory", "init", "--config", str(write(place))]) == 1
    assert capsys.readouterr().err == f"kata-ctl: cannot make the template in {place}: no /dev/kvm\n"
    assert sorted(path.name for path in place.parent.iterdir()) == [".template.lock", "template"]
    assert [path.name for path in place.iterdir()] == ["state"]


def test_a_missing_configuration_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factory", "status", "--config", str(tmp_path / "none.toml")]) == 1
    assert "none.toml" in capsys.readouterr().err


def test_a_process_that_only_dies_is_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.mkdir(parents=True)
    configuration = load(write(place), check_host=False)

    def live(configuration: object, directory: Path, messages: int, log: int) -> None:
        import os

        os.write(log, b"a line of \x1b[2Jits log\n")
        os._exit(3)

    monkeypatch.setattr(maker, "_live", live)
    assert maker.make(configuration, place) == "the process that makes it exited with status 3"
    assert capsys.readouterr().err == "a line of \\x1b[2Jits log\n"
