"""The drivers: one declaration for each, and whoever asks something of each takes up a new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conformance_subjects
import unikernel_subjects
from fake_qemu import FakeHost
from kata_configuration.models import HYPERVISORS
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Spt
from kata_hypervisor import registry
from kata_hypervisor.contract import Hypervisor, UnikernelVmm
from kata_hypervisor.driver_info import DriverInfo
from kata_hypervisor.errors import NotSupportedError
from kata_runtime.broker import operations
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.ctl import check, env
from kata_runtime.ctl.findings import Finding, Setup, Status
from tables import make_table

MACHINES = [info for info in registry.DRIVERS if info.machine]
MONITORS = [info for info in registry.DRIVERS if info.unikernel]


def test_a_driver_is_made_by_name() -> None:
    assert isinstance(
        registry.create("qemu", make_table(QemuHypervisor, kernel="/k"), FakeHost()), Hypervisor
    )


@pytest.mark.parametrize("make", [registry.create, registry.create_for_unikernel])
def test_an_unknown_name_is_refused_with_the_known_ones(make: object) -> None:
    known = "clh, dragonball, firecracker, qemu, solo5-hvt, solo5-spt"
    with pytest.raises(NotSupportedError, match=f'no hypervisor driver "bochs"; known: {known}'):
        make("bochs", make_table(QemuHypervisor, kernel="/k"), FakeHost())  # type: ignore[operator]


def test_a_table_without_a_kernel_makes_monitors_of_unikernels_only() -> None:
    table = make_table(QemuHypervisor, kernel="")
    assert isinstance(registry.create_for_unikernel("qemu", table, FakeHost()), UnikernelVmm)
    with pytest.raises(
        NotSupportedError, match='runs unikernels only, because its kernel is "", and neither'
    ):
        registry.create("qemu", table, FakeHost())
    with pytest.raises(NotSupportedError, match=r"^\[hypervisor.solo5-spt\] runs unikernels only, and"):
        registry.create("solo5-spt", make_table(Solo5Spt), FakeHost())


def test_what_runs_no_unikernels_says_so() -> None:
    able = "dragonball, firecracker, qemu, solo5-hvt, solo5-spt"
    with pytest.raises(NotSupportedError, match=rf"\[hypervisor.clh\] runs no unikernels; .* {able}"):
        registry.create_for_unikernel("clh", make_table(QemuHypervisor, kernel="/k"), FakeHost())


@pytest.mark.parametrize("info", MACHINES, ids=lambda info: info.name)
def test_every_machine_exists(info: DriverInfo) -> None:
    assert issubclass(registry._load(info.machine), Hypervisor)


@pytest.mark.parametrize("info", MONITORS, ids=lambda info: info.name)
def test_every_monitor_exists(info: DriverInfo) -> None:
    assert issubclass(registry._load(info.unikernel), UnikernelVmm)


@pytest.mark.parametrize("info", registry.DRIVERS, ids=lambda info: info.name)
def test_a_program_is_where_the_table_looks_for_it(info: DriverInfo) -> None:
    model = HYPERVISORS[info.name]
    table = model.model_validate(model.example())
    assert str(table.program or "") == info.default_path  # type: ignore[attr-defined]


def test_the_registry_is_cheap_enough_for_the_broker() -> None:
    script = (
        "import sys, kata_hypervisor.registry\n"
        "dear = {'asyncio', 'dataclasses', 'typing', 'pydantic', 'kata_hypervisor.contract'}\n"
        "sys.exit(', '.join(dear & set(sys.modules)) or None)"
    )
    paths = [str(Path(registry.__file__).parents[1])]
    child = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")


# -- a new driver: a folder, and a line in the registry ------------------------------------------------------

TOY_INFO = """
from kata_hypervisor.driver_info import DriverInfo

TOY = DriverInfo(
    "toy",
    program="toyvmm",
    default_path={program!r},
    children=("toyvmm", "toyd"),
    machine="toy.driver:Toy",
    unikernels=("toy",),
    required="2.0",
    vhost_vsock="required",
    seal_features={{"": frozenset()}},
    confined="a toy's filter",
    verified="looking at it",
)
"""
TOY_DRIVER = """
class Toy:
    def __init__(self, table, host):
        self.table = table

    @classmethod
    def describe_template(cls, spec):
        return {"a": "toy"}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriverInfo:
    """A toy driver in a folder of its own, and its line in the registry; nothing else knows of it."""
    program = tmp_path / "toyvmm"
    program.write_text("#!/bin/sh\necho toyvmm 2.1\n")
    program.chmod(0o755)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "info.py").write_text(TOY_INFO.format(program=str(program)))
    (folder / "driver.py").write_text(TOY_DRIVER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("toy", "toy.info", "toy.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    info: DriverInfo = registry._load("toy.info:TOY")
    monkeypatch.setattr(registry, "DRIVERS", (*registry.DRIVERS, info))
    return info


def test_a_new_driver_is_made_by_name(toy: DriverInfo) -> None:
    table = make_table(QemuHypervisor, kernel="/k")
    assert registry.create("toy", table, FakeHost()).table is table  # type: ignore[attr-defined]
    assert registry.unikernel_runners()["toy"] == ("toy",)


def test_env_describes_a_new_driver(toy: DriverInfo, tmp_path: Path) -> None:
    assert env.gather(str(tmp_path / "none"), {})["drivers"]["toy"] == [
        f"program:     {toy.default_path} 2.1",
        "supported:   2.0 and later",
        "confined by: a toy's filter",
        "verified by: looking at it",
        "unikernels:  those whose image says toy",
    ]


def test_check_looks_for_a_new_drivers_program_and_device(toy: DriverInfo, tmp_path: Path) -> None:
    setup = Setup(
        "kvm",
        Path(toy.default_path),
        None,
        1,
        (),
        Finding("configuration", Status.OK, ""),
        root=tmp_path,
        hypervisor="toy",
    )
    assert check.check_vmm(setup) == Finding("toyvmm", Status.OK, f"{toy.default_path} 2.1")
    Path(toy.default_path).write_text("#!/bin/sh\necho toyvmm 1.9\n")
    old = check.check_vmm(setup)
    assert (old.status, old.fix) == (Status.FAIL, "correct path in [hypervisor.toy]")
    assert "is version 1.9, 2.0 or later is needed" in old.cause
    assert check.check_vhost_vsock(setup).status is Status.FAIL


def to_spawn(role: str) -> dict[str, object]:
    """A request to the broker."""
    optional = dict.fromkeys(("environment", "gate", "seccomp", "privileges"))
    plain = {"argv": ["/t"], "fds": [], **optional}
    return {"id": 1, "op": "spawn", "name": role, **plain}


@pytest.mark.parametrize("role", ["toyvmm", "toyd"])
def test_the_broker_starts_a_new_drivers_children(toy: DriverInfo, role: str) -> None:
    assert operations.parse(to_spawn(role), 0)[1]["name"] == role


def test_the_broker_starts_nothing_else() -> None:
    with pytest.raises(RequestRefusedError, match="name may not be 'toyvmm'"):
        operations.parse(to_spawn("toyvmm"), 0)


def test_the_conformance_suite_asks_for_a_new_drivers_bench(
    toy: DriverInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "toy" in [parameter.id for parameter in conformance_subjects.parameters()]
    assert "toy" not in [parameter.id for parameter in unikernel_subjects.parameters()]
    with pytest.raises(pytest.fail.Exception, match="the driver toy has no bench"):
        conformance_subjects.bench_of("toy", tmp_path, monkeypatch)
