"""A virtiofsd that may open few files: the guest forgets in time what it has looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from oci_bundle import bind
from shim_harness import Lab
from shim_pod import Pod

pytestmark = pytest.mark.integration

LIMIT, FILES, DIRECTORIES = 2000, 3000, 20


@pytest.fixture
async def limited(lab: Lab) -> AsyncIterator[Pod]:
    """A pod whose virtiofsd may have LIMIT descriptors."""
    configuration = lab.configure("few-files", virtio_fs_extra_args=[f"--rlimit-nofile={LIMIT}"])
    pod = await Pod.start(lab, environment={"KATA_CONF_FILE": str(configuration)})
    yield pod
    await pod.shim.close()


@pytest.fixture
def many(lab: Lab) -> Path:
    """A directory of the host with more files than that."""
    directory = lab.directory / lab.new_id("many")
    for number in range(DIRECTORIES):
        (directory / str(number)).mkdir(parents=True)
    for number in range(FILES):
        (directory / str(number % DIRECTORIES) / f"file-{number}").write_text("x")
    return directory


async def test_every_file_is_found_and_asked_for_its_size(limited: Pod, many: Path) -> None:
    script = "find /data -type f | wc -l; ls -lR /data | grep -c file-"
    finished = await limited.run("sh", "-c", script, mounts=[bind(many, "/data", "ro")])
    assert finished.text == f"{FILES}\n" * 2
