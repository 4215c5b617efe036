"""make run: which hypervisor it shows, and what it says where this host cannot run it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

import pytest

from kata_configuration import load
from kata_hypervisor import vhost_vsock
from kata_hypervisor.kvm.probe import KvmProbeResult

EXAMPLES = Path(__file__).parents[2] / "examples" / "quickstart"
sys.path.insert(0, str(EXAMPLES))

import selection  # noqa: E402

SPEC = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "run.py")
assert SPEC is not None
assert SPEC.loader is not None
quickstart = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(quickstart)

GOOD = KvmProbeResult(True, True, "KVM runs unmodified guests")
BAD = KvmProbeResult(True, False, "this KVM only emulates")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A host that has it all."""
    device = tmp_path / "vhost-vsock"
    device.touch()
    monkeypatch.setattr(vhost_vsock, "DEVICE", device)
    monkeypatch.setattr(selection, "probe_kvm", lambda: GOOD)
    return monkeypatch


def test_a_host_that_has_it_all(host: pytest.MonkeyPatch) -> None:
    assert selection.find_obstacle("dragonball") is None


def test_a_kvm_that_only_emulates(host: pytest.MonkeyPatch) -> None:
    host.setattr(selection, "probe_kvm", lambda: BAD)
    assert selection.find_obstacle("dragonball") == "this KVM only emulates"
    assert selection.find_obstacle("qemu") is None


def test_a_host_without_vsock(host: pytest.MonkeyPatch) -> None:
    host.setattr(vhost_vsock, "DEVICE", Path("/nonexistent/vhost-vsock"))
    assert selection.find_obstacle("dragonball") == "there is no /nonexistent/vhost-vsock: load vhost_vsock"


def test_it_says_why_not_and_offers_the_rig(
    host: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.setattr(selection, "probe_kvm", lambda: BAD)
    host.setattr(os, "geteuid", lambda: 0)
    host.setattr(sys, "argv", ["run.py", "--hypervisor", "dragonball"])
    assert quickstart.main() == 2
    output = capsys.readouterr().out.splitlines()
    why = "==> this host runs no virtual machine in the runtime's own process: this KVM only emulates"
    assert output == [why, f"    the rig, an emulated host, does: {selection.RIG}"]


def test_a_setting_of_another_hypervisor_is_refused(host: pytest.MonkeyPatch) -> None:
    host.setattr(sys, "argv", ["run.py", "--hypervisor", "dragonball", "--seccompsandbox", "off"])
    with pytest.raises(SystemExit, match="2"):
        quickstart.main()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("qemu", {"accelerator": "tcg"}), ("qemu", {"seccompsandbox": "on"}), ("dragonball", {})],
)
def test_the_configuration_is_a_good_one(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    path = tmp_path / "configuration.toml"
    path.write_text(selection.configure(name, Path("/image"), **settings))
    configuration = load(path, check_host=False)
    assert configuration.hypervisor_name == name
    assert getattr(configuration.hypervisor, "kernel") == Path("/image/vmlinuz")  # noqa: B009 - not of every table
    for key, value in settings.items():
        assert getattr(configuration.hypervisor, key) == value


def test_the_rig_it_offers_runs_the_quickstart_that_is_there() -> None:
    arguments = shlex.split(shlex.split(selection.RIG)[-1].removeprefix("ARGS="))
    assert (EXAMPLES.parents[1] / arguments[1]).samefile(EXAMPLES / "run.py")
