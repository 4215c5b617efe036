"""Drivers by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fake_qemu import FakeHost
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor import registry
from kata_hypervisor.contract import Hypervisor, UnikernelVmm
from kata_hypervisor.errors import NotSupportedError


def test_a_driver_is_made_by_name() -> None:
    assert isinstance(registry.create("qemu", QemuHypervisor(kernel="/k"), FakeHost()), Hypervisor)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    known = "clh, dragonball, firecracker, qemu"
    with pytest.raises(NotSupportedError, match=f'no hypervisor driver "bochs"; known: {known}'):
        registry.create("bochs", QemuHypervisor(kernel="/k"), FakeHost())


def test_a_table_without_a_kernel_makes_monitors_of_unikernels_only() -> None:
    table = QemuHypervisor(kernel="")
    assert isinstance(registry.create_for_unikernel("qemu", table, FakeHost()), UnikernelVmm)
    with pytest.raises(
        NotSupportedError, match='runs unikernels only, because its kernel is "", and neither'
    ):
        registry.create("qemu", table, FakeHost())


@pytest.mark.parametrize("name", registry.UNIKERNEL_VMMS)
def test_every_monitor_exists(name: str) -> None:
    module, _, attribute = registry.UNIKERNEL_VMMS[name].partition(":")
    assert issubclass(getattr(__import__(module, fromlist=[attribute]), attribute), UnikernelVmm)


@pytest.mark.parametrize("name", registry.DRIVERS)
def test_every_entry_exists(name: str) -> None:
    module, _, attribute = registry.DRIVERS[name].partition(":")
    assert issubclass(getattr(__import__(module, fromlist=[attribute]), attribute), Hypervisor)


def test_the_table_itself_imports_no_driver() -> None:
    script = "import sys, kata_hypervisor.registry; sys.exit('kata_hypervisor.qemu.driver' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
