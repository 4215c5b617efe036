"""What a sandbox's machine is described with."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_hypervisor.contract import Disk
from kata_runtime.pod.machine_spec import SPARE_DISKS, spare_disks

ROOTFS = (Disk("rootfs", Path("/image"), read_only=True),)
TYPE = "io.kubernetes.cri.container-type"


@pytest.mark.parametrize(
    ("annotations", "disks", "expected"),
    [
        ({}, ROOTFS, 0),
        ({TYPE: "sandbox"}, ROOTFS, SPARE_DISKS),
        ({}, (), SPARE_DISKS),
    ],
    ids=["alone, as ctr makes it", "a pod of the CRI", "made by the sandbox API"],
)
def test_only_a_pod_has_disks_for_later_containers(
    annotations: dict[str, str], disks: tuple[Disk, ...], expected: int
) -> None:
    assert spare_disks({"annotations": annotations}, disks) == expected
