"""The files that Kata Containers 4.1.0 ships: every true fault is found, and no false one.

Each was judged by hand. What is reported is true because the key asks for something that nobody here does,
and no key is here that asks for what happens anyway. Nothing of upstream's is kept here: KATA_TEST_UPSTREAM
names a checkout or a git directory of its sources.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

import upstream
from kata_configuration import Severity, lint
from kata_configuration.models import AVAILABLE
from kata_configuration.tell.migration import Weight, migrate

pytestmark = pytest.mark.skipif(bool(upstream.why_not()), reason=upstream.why_not() or "never")

# (code, key) -> in how many files of runtime-go and of runtime-rs, of 14 and 15.
Table = dict[tuple[str, str], tuple[int, int]]

ERRORS: Table = {
    # Asks for what this version does not do.
    ("KATA203", "hypervisor.qemu.cold_plug_vfio"): (4, 4),
    ("KATA203", "hypervisor.qemu.guest_extension_images"): (0, 7),
    ("KATA203", "runtime.emptydir_mode"): (0, 2),
    ("KATA203", "runtime.pod_resource_api_sock"): (3, 3),
    ("KATA203", "runtime.vfio_mode"): (1, 1),
    ("KATA303", "hypervisor.dragonball.shared_fs"): (0, 1),
    # Several cgroups for one sandbox.
    ("KATA303", "runtime.sandbox_cgroup_only"): (10, 0),
    # Asks for a protection that this version does not have.
    ("KATA213", "hypervisor.qemu.confidential_guest"): (5, 5),
    ("KATA213", "hypervisor.qemu.sev_snp_guest"): (2, 2),
    ("KATA213", "runtime.emptydir_mode"): (6, 6),
    # Files of block devices in the guest, where none are shared.
    ("KATA203", "hypervisor.qemu.disable_block_device_use"): (6, 0),
    # A placeholder that its Makefile does not fill, of a key that its loader does not have.
    ("KATA204", "hypervisor.qemu.firmware_volume"): (0, 1),
    # Is another key here, with another unit or in another table.
    ("KATA204", "agent.kata.dial_timeout"): (14, 0),
    ("KATA204", "runtime.create_container_timeout"): (14, 0),
    # A guest whose kernel holds its root file system.
    ("KATA205", "hypervisor.qemu.image"): (1, 1),
    # Hypervisors that this version cannot run, or does not know; the Go runtime has no hypervisor_name.
    ("KATA203", "hypervisor.openvmm"): (0, 1),
    ("KATA203", "hypervisor.remote"): (1, 1),
    ("KATA203", "hypervisor.stratovirt"): (1, 0),
    ("KATA206", "hypervisor.qemu"): (5, 0),
    ("KATA303", "runtime.hypervisor_name"): (0, 2),
}

WARNINGS: Table = {
    # Their shipped defaults confine neither QEMU nor the containers in the guest.
    ("KATA502", "hypervisor.qemu.seccomp_sandbox"): (0, 9),
    ("KATA502", "hypervisor.qemu.seccompsandbox"): (9, 0),
    ("KATA504", "runtime.disable_guest_seccomp"): (14, 15),
    # Memory that is plugged, where a machine has its size from the start.
    ("KATA404", "hypervisor.qemu.enable_virtio_mem"): (0, 1),
    # Of virtiofsd, where no files are shared.
    ("KATA404", "hypervisor.qemu.virtio_fs_daemon"): (6, 8),
    ("KATA404", "hypervisor.qemu.virtio_fs_extra_args"): (6, 8),
    # The Go runtime's "remote" leaves the pod's network to others.
    ("KATA509", "runtime.disable_new_netns"): (1, 0),
    # One byte.
    ("KATA305", "agent.kata.container_pipe_size"): (0, 4),
    # Tables that are not selected, because nothing selects them here.
    ("KATA204", "hypervisor.clh.hypervisor_loglevel"): (2, 0),
    ("KATA303", "hypervisor.clh.block_device_driver"): (2, 0),
    ("KATA303", "hypervisor.firecracker.block_device_driver"): (1, 0),
    # Annotations of keys that are not honoured: enable_iommu, kernel_verity_params, cc_init_data.
    ("KATA712", "hypervisor.clh.enable_annotations"): (2, 2),
    ("KATA712", "hypervisor.dragonball.enable_annotations"): (0, 1),
    ("KATA712", "hypervisor.firecracker.enable_annotations"): (1, 1),
    ("KATA712", "hypervisor.qemu.enable_annotations"): (9, 7),
}

# What a migrated file has left: of QEMU nothing that is an error, but where no root file system is named.
LEFT = {
    "configuration-qemu-se": {"KATA205"},
    "configuration-qemu-se-runtime-rs": {"KATA205"},
    "configuration-remote": {"KATA206", "KATA303"},
    "configuration-stratovirt": {"KATA206"},
    "configuration-openvmm-azure-runtime-rs": {"KATA303"},
}


# For what each runtime is used for most: what loads as it is, and what loads once migrated.
UNCHANGED = {
    "configuration-qemu-runtime-rs",
    "configuration-clh-runtime-rs",
    "configuration-clh-azure-runtime-rs",
    "configuration-rs-fc",
}
MIGRATED = {
    "configuration-dragonball",
    # Of the Go runtime: dial_timeout is in another unit, and the hypervisor is named.
    "configuration-qemu",
    "configuration-qemu-nvidia-cpu",
    "configuration-clh",
    "configuration-clh-azure",
    "configuration-fc",
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Make upstream's files, by runtime."""
    return upstream.make(tmp_path_factory.mktemp("upstream"))


def test_all_of_them_are_read(shipped: dict[str, list[Path]]) -> None:
    assert {name: len(files) for name, files in shipped.items()} == {"runtime-go": 14, "runtime-rs": 15}


@pytest.mark.parametrize(
    ("severity", "expected"),
    [(Severity.ERROR, ERRORS), (Severity.WARNING, WARNINGS)],
    ids=["errors", "warnings"],
)
def test_what_is_reported_is_what_was_judged_true(
    shipped: dict[str, list[Path]], severity: Severity, expected: Table
) -> None:
    findings: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for runtime, files in shipped.items():
        for file in files:
            found = [item for item in lint(file, check_host=False) if item.severity is severity]
            for what in {(item.code, item.key.partition("[")[0]) for item in found}:
                findings[what][runtime] += 1
    numbers = {what: (counts["runtime-go"], counts["runtime-rs"]) for what, counts in findings.items()}
    assert numbers == expected


def test_each_becomes_a_file_that_loads_unless_its_hypervisor_is_missing(
    shipped: dict[str, list[Path]],
) -> None:
    for file in (file for files in shipped.values() for file in files):
        migration = migrate(file.read_text(encoding="utf-8"), "# migrated\n\n", file)
        errors = {found.code for found in migration.left if found.severity is Severity.ERROR}
        others = {found.code for found in migration.left} - errors
        if any(f"[hypervisor.{name}]" in migration.text for name in AVAILABLE):
            assert errors == LEFT.get(file.stem, set()), file
        else:
            assert errors
            assert errors <= LEFT.get(file.stem, {"KATA212"}), file
        assert others <= {"KATA305", "KATA504", "KATA509"}, file
        assert all(change.reason for change in migration.changes)


def test_the_files_of_each_hypervisor_load_with_nothing_lost(shipped: dict[str, list[Path]]) -> None:
    files = {file.stem: file for files in shipped.values() for file in files}
    for name in UNCHANGED | MIGRATED:
        errors = [item for item in lint(files[name], check_host=False) if item.severity is Severity.ERROR]
        assert bool(errors) == (name in MIGRATED), errors
        migration = migrate(files[name].read_text(encoding="utf-8"), "", files[name])
        assert migration.complete, name


def test_a_lost_protection_is_no_complete_migration(shipped: dict[str, list[Path]]) -> None:
    for file in (file for files in shipped.values() for file in files):
        asks = "confidential_guest = true" in file.read_text(encoding="utf-8").splitlines()
        migration = migrate(file.read_text(encoding="utf-8"), "", file)
        assert (
            any(
                "confidential_guest" in change.what
                for change in migration.changes
                if change.weight is Weight.PROTECTION
            )
            == asks
        )
        assert not (asks and migration.complete)
