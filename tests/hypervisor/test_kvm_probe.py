"""The probe's results, and the kernel's structures that it uses. None of this needs a KVM."""

from __future__ import annotations

import os
from ctypes import sizeof
from pathlib import Path

import pytest

from kata_hypervisor.kvm import abi, guest, machine, probe
from kata_hypervisor.kvm.guest import TRIALS
from kata_hypervisor.kvm.machine import Observation
from kata_hypervisor.kvm.probe import judge, probe_kvm

ALL = tuple(trial.expected for trial in TRIALS)


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (abi.KvmSegment, 24),
        (abi.KvmDtable, 16),
        (abi.KvmSregs, 312),
        (abi.KvmRegs, 144),
        (abi.KvmUserspaceMemoryRegion, 32),
        (abi.KvmCpuidEntry2, 40),
        (abi.KvmCpuid2, 8 + 40 * abi.MAX_CPUID_ENTRIES),
        (abi.KvmRunIo, 16),
        (abi.KvmRunInternal, 136),
        (abi.KvmRun, 288),
    ],
)
def test_structures_have_the_kernels_sizes(structure: type, size: int) -> None:
    assert sizeof(structure) == size


@pytest.mark.parametrize(
    ("request_number", "value"),
    [
        (abi.KVM_GET_API_VERSION, 0xAE00),
        (abi.KVM_GET_SUPPORTED_CPUID, 0xC008AE05),
        (abi.KVM_SET_USER_MEMORY_REGION, 0x4020AE46),
        (abi.KVM_SET_REGS, 0x4090AE82),
        (abi.KVM_GET_SREGS, 0x8138AE83),
        (abi.KVM_SET_SREGS, 0x4138AE84),
        (abi.KVM_SET_CPUID2, 0x4008AE90),
    ],
)
def test_requests_have_the_kernels_numbers(request_number: int, value: int) -> None:
    assert request_number == value


def test_fields_are_where_the_kernel_has_them() -> None:
    assert (abi.KvmRun.exit_reason.offset, abi.KvmRun.exit.offset) == (8, 32)
    assert (abi.KvmRunIo.port.offset, abi.KvmRunIo.data_offset.offset) == (2, 8)
    assert (abi.KvmSregs.gdt.offset, abi.KvmSregs.cr0.offset, abi.KvmSregs.efer.offset) == (192, 224, 264)
    assert (abi.KvmRegs.rsp.offset, abi.KvmRegs.rip.offset) == (48, 128)


def test_the_program_fits_and_ends_with_a_halt() -> None:
    code = guest.program()
    assert len(code) < machine.STACK - machine.CODE
    assert code.count(guest.OUT_EAX) == len(TRIALS)
    assert code.endswith(guest.HALT)


def test_all_results_right_is_a_kvm_for_unmodified_guests() -> None:
    result = judge("/dev/kvm", Observation(ALL, "KVM_EXIT_HLT"))
    assert (result.usable, result.runs_unmodified_guests) == (True, True)


@pytest.mark.parametrize(
    ("seen", "usable", "reason"),
    [
        (Observation(refused="cannot open /dev/kvm"), False, "cannot open /dev/kvm"),
        (
            Observation(ALL[:2], "KVM_EXIT_INTERNAL_ERROR, emulation failure", emulates=True),
            True,
            "this KVM only emulates: SSE2 arithmetic in the guest's kernel ended with "
            "KVM_EXIT_INTERNAL_ERROR, emulation failure",
        ),
        (
            Observation((), "KVM_EXIT_FAIL_ENTRY"),
            True,
            "this KVM does not run a plain guest: integer arithmetic in the guest's kernel ended with "
            "KVM_EXIT_FAIL_ENTRY",
        ),
        (
            Observation((*ALL[:-1], 7), "KVM_EXIT_HLT"),
            True,
            "this KVM computes wrongly: x87 arithmetic in the guest's kernel gave 0x7, not 0x2",
        ),
        (
            Observation(ALL, "exit reason 99"),
            True,
            "this KVM does not run a plain guest: its halt ended with exit reason 99",
        ),
        (
            Observation((*ALL, 1), "more results than trials"),
            True,
            "this KVM does not run a plain guest: its halt ended with more results than trials",
        ),
    ],
)
def test_anything_else_is_not(seen: Observation, usable: bool, reason: str) -> None:
    result = judge("/dev/kvm", seen)
    assert (result.usable, result.runs_unmodified_guests, result.reason) == (usable, False, reason)


def test_a_device_that_is_absent_or_no_kvm(tmp_path: Path) -> None:
    absent = probe_kvm(str(tmp_path / "kvm"))
    assert not absent.usable
    assert absent.reason.startswith(f"{tmp_path}/kvm does not exist: load kvm_intel or kvm_amd")
    other = probe_kvm("/dev/null")
    assert (other.usable, other.reason) == (False, "/dev/null is not a KVM device")


def test_a_probe_without_a_result_tells_nothing_of_the_kvm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "CHILD", "import time; time.sleep(600)")
    result = probe_kvm("/dev/kvm", deadline=0.2)
    assert (result.usable, result.runs_unmodified_guests) == (False, False)
    assert result.reason == (
        "the probe of /dev/kvm got no result within 0.2 seconds: this host is very busy, or its KVM hangs; "
        "try again"
    )


SPINNING = """
import sys; sys.path.insert(0, sys.argv.pop(1))
from kata_hypervisor.kvm import machine
def spin(device):
    while True: pass
machine.observe, machine.PROCESSOR_TIME = spin, 0.05
machine.main()
"""


def test_a_guest_that_does_not_end_is_told_by_the_processors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CHILD", SPINNING)
    result = probe_kvm("/dev/kvm", deadline=600)
    assert (result.usable, result.runs_unmodified_guests) == (True, False)
    assert result.reason == (
        "/dev/kvm does not run a plain guest: a guest of a few instructions did not end in 3 seconds of "
        "processor time"
    )


def test_a_probe_that_crashes_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CHILD", "raise SystemExit('no memory')")
    result = probe_kvm("/dev/kvm")
    assert (result.usable, result.reason) == (False, "the probe of /dev/kvm exited with status 1: no memory")


def test_another_architecture_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert probe_kvm().reason == "cannot probe /dev/kvm on aarch64: the probe's guest is for x86_64"


def test_no_descriptor_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    machine.observe("/dev/kvm")
    machine.observe("/dev/null")
    assert set(os.listdir("/proc/self/fd")) == before
