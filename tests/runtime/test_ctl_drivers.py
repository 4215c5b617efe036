"""What `kata-ctl env` and `kata-ctl check` say of each driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_configuration.models import AVAILABLE, HYPERVISORS
from kata_hypervisor import registry
from kata_runtime.ctl import check, env
from kata_runtime.ctl.driver_report import describe
from kata_runtime.ctl.findings import Finding, Setup, Status

KNOWN = {"clh": "cloud-hypervisor v54.0.0", "firecracker": "Firecracker v1.12.1"}


def program(directory: Path, says: str) -> Path:
    path = directory / "vmm"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def setup_for(name: str, path: Path) -> Setup:
    return Setup("kvm", path, None, 1, (), Finding("configuration", Status.OK, ""), hypervisor=name)


def test_every_hypervisor_is_described() -> None:
    assert [info.name for info in registry.DRIVERS] == list(HYPERVISORS) == list(AVAILABLE)


@pytest.mark.parametrize(("name", "says"), KNOWN.items())
def test_a_version_that_was_tested(name: str, says: str, tmp_path: Path) -> None:
    path = program(tmp_path, says)
    assert check.check_vmm(setup_for(name, path)).status is Status.OK
    lines = describe(name, path)
    assert lines[0] == f"program:     {path} {says.rpartition('v')[2]}"
    topics = ["program", "supported", "confined by", "verified by", "unikernels"]
    assert [line.partition(":")[0] for line in lines] == topics


@pytest.mark.parametrize("name", KNOWN)
def test_a_version_that_was_not(name: str, tmp_path: Path) -> None:
    found = check.check_vmm(setup_for(name, program(tmp_path, "vmm v0.9.1")))
    assert found.status is Status.WARN
    assert "0.9.1 was not tested with this runtime; tested: " in found.cause


@pytest.mark.parametrize("name", KNOWN)
def test_a_program_that_is_missing(name: str, tmp_path: Path) -> None:
    found = check.check_vmm(setup_for(name, tmp_path / "none"))
    assert (found.status, found.cause) == (Status.FAIL, f"{tmp_path / 'none'}: No such file or directory")
    assert f"[hypervisor.{name}]" in found.fix


def test_virtiofsd_is_not_looked_for_where_no_files_are_shared() -> None:
    found = check.check_virtiofsd(setup_for("firecracker", Path("/none")))
    assert (found.status, found.cause) == (Status.OK, "not needed: this hypervisor shares no files")


@pytest.mark.parametrize("name", KNOWN)
def test_env_of_a_configuration_that_selects_it(name: str, tmp_path: Path) -> None:
    path = program(tmp_path, KNOWN[name])
    file = tmp_path / "configuration.toml"
    file.write_text(
        f'[hypervisor.{name}]\npath = "{path}"\nkernel = "/k"\nimage = "/i"\n'
        f'[agent.kata]\n[runtime]\nhypervisor_name = "{name}"\n'
    )
    facts = env.gather(str(file), {})
    assert facts["configuration"]["faults"] == []
    assert facts["hypervisor"]["program"].startswith(str(path))
    assert facts["hypervisor"]["confinement"] == "seccomp: the filter of the VMM itself"
    assert facts["drivers"][name][0].startswith(f"program:     {path}")


def configuration(directory: Path, name: str, text: str = "", guest: str = "") -> Path:
    file = directory / "configuration.toml"
    file.write_text(
        f'[hypervisor.{name}]\n{guest}{text}[agent.kata]\n[runtime]\nhypervisor_name = "{name}"\n'
    )
    return file


GUEST = 'kernel = "/k"\nimage = "/i"\n'


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_hypervisor_can_be_asked_about(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = "" if name.startswith("solo5") else GUEST
    file = configuration(tmp_path, name, guest=guest)
    facts = env.gather(str(file), {})
    assert facts["configuration"]["faults"] == []
    assert facts["hypervisor"]["shim seccomp"].startswith("enforce: 3")
    assert "but:" not in facts["hypervisor"]["shim seccomp"]
    monkeypatch.setenv("KATA_CONF_FILE", str(file))
    setup = check.read_setup()
    assert setup.configuration.status is Status.OK
    assert len([found(setup) for found in check.CHECKS]) == len(check.CHECKS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qemu", "those whose image says qemu"),
        ("dragonball", "those whose image says hvt"),
        ("clh", "none"),
    ],
)
def test_which_unikernels_it_runs(name: str, expected: str) -> None:
    assert describe(name, None)[-1] == f"unikernels:  {expected}"


@pytest.mark.parametrize("name", ["qemu", "firecracker"])
def test_whether_unikernels_may_turn_the_filter_off(tmp_path: Path, name: str) -> None:
    file = configuration(tmp_path, name, "honor_unconfined = true\n", GUEST)
    expected = env.gather(str(file), {})["hypervisor"]["unconfined"]
    assert expected.startswith("honored: a unikernel whose container has no seccomp profile")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not honored"),
        ("honor_unconfined = false\n", "not honored"),
        ("honor_unconfined = true\n", "honored"),
    ],
)
def test_whether_containers_may_turn_the_filter_off(tmp_path: Path, text: str, expected: str) -> None:
    facts = env.gather(str(configuration(tmp_path, "solo5-hvt", text)), {})
    assert facts["hypervisor"]["unconfined"].partition(":")[0] == expected


def test_that_is_not_said_where_they_never_may(tmp_path: Path) -> None:
    facts = env.gather(str(configuration(tmp_path, "solo5-spt")), {})
    assert "unconfined" not in facts["hypervisor"]


def test_without_a_filter_the_machine_in_process_has_no_sealed_runtime(tmp_path: Path) -> None:
    file = configuration(tmp_path, "dragonball", "disable_seccomp = true\n", GUEST)
    facts = env.gather(str(file), {})["hypervisor"]
    assert facts["program"] == "none, it is the runtime's own process"
    assert facts["shim seccomp"].startswith("off: ")
    assert facts["confinement"] == "the VMM is the runtime's own process: see shim seccomp"


def test_in_process_the_agent_is_reached_by_vsock_only(tmp_path: Path) -> None:
    absent = Finding("configuration", Status.OK, "")
    setup = Setup("kvm", None, None, 1, (), absent, root=tmp_path, hypervisor="dragonball")
    assert check.check_vhost_vsock(setup).status is Status.FAIL
    assert check.check_vmm(setup).status is Status.OK


@pytest.mark.parametrize(("name", "program"), [("clh", "cloud-hypervisor"), ("firecracker", "firecracker")])
def test_a_vmm_with_a_socket_of_its_own_needs_no_vhost_vsock(tmp_path: Path, name: str, program: str) -> None:
    absent = Finding("configuration", Status.OK, "")
    found = check.check_vhost_vsock(Setup("kvm", None, None, 1, (), absent, root=tmp_path, hypervisor=name))
    assert (found.status, found.cause) == (Status.OK, f"not needed: {program} has a socket of its own")


def test_a_unikernel_needs_less(tmp_path: Path) -> None:
    absent = Finding("configuration", Status.OK, "")
    setup = Setup("tcg", tmp_path / "none", None, 1, (), absent, root=tmp_path, hypervisor="solo5-spt")
    for found in (check.check_kvm(setup), check.check_vhost_vsock(setup), check.check_image(setup)):
        assert (found.status, found.cause.partition(":")[0]) == (Status.OK, "not needed")
