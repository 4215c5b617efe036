"""What a sandbox's machine is described with."""

from __future__ import annotations

import pytest

from kata_runtime.pod.machine_spec import SPARE_DISKS, spare_disks

TYPE = "io.kubernetes.cri.container-type"


@pytest.mark.parametrize(
    ("annotations", "first", "expected"),
    [
        ({}, 0, 0),
        ({}, 2, 2),
        ({TYPE: "sandbox"}, 0, SPARE_DISKS),
        ({TYPE: "sandbox"}, SPARE_DISKS + 1, SPARE_DISKS + 1),
        ({}, None, SPARE_DISKS),
    ],
    ids=["alone, as ctr makes it", "alone with devices", "a pod of the CRI", "one with many", "sandbox API"],
)
def test_only_a_pod_has_disks_for_later_containers(
    annotations: dict[str, str], first: int | None, expected: int
) -> None:
    assert spare_disks({"annotations": annotations}, first) == expected
