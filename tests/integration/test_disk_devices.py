"""Block devices of the host, and machines that grow, with Cloud Hypervisor and Dragonball: `make test-rig`.

KATA_TEST_CLOUD_HYPERVISOR names that program. With QEMU: test_block_devices.py, test_growing_pod.py.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import growing
import shipped_configuration
from kata_agent.ttrpc.status import RpcError
from loop_devices import SIZE, loop_device, number_of
from shim_harness import Lab
from shim_pod import Pod

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(3600)]

PROGRAMS = {"clh": "KATA_TEST_CLOUD_HYPERVISOR", "dragonball": ""}


@pytest.fixture(scope="module", params=list(PROGRAMS))
def driver(request: pytest.FixtureRequest) -> str:
    """A driver whose program is there."""
    variable = PROGRAMS[request.param]
    if variable and not Path(os.environ.get(variable, "/nonexistent")).exists():
        pytest.skip(f"{variable} names no program")
    return str(request.param)


@pytest.fixture(scope="module")
async def pod(driver: str, lab: Lab, guest_image: Path) -> AsyncIterator[Pod]:
    """A pod that shares files with its host, and grows where its driver can; nothing of it is left."""
    values = shipped_configuration.for_image(guest_image)
    del values["accelerator"]
    if variable := PROGRAMS[driver]:
        values |= {"path": Path(os.environ[variable]), **growing.SETTINGS}
    path = lab.directory / f"{driver}.toml"
    path.write_text(shipped_configuration.render(values, driver))
    async with Pod.running(lab, path) as pod:
        yield pod


def given(device: Path, access: str = "rw") -> dict[str, Any]:
    """What a specification says of a block device that its container gets as /dev/volume."""
    major, minor = map(int, number_of(device).split(":"))
    node = {"path": "/dev/volume", "type": "b", "major": major, "minor": minor, "fileMode": 0o600}
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": access}
    return {"linux": {"devices": [node], "resources": {"devices": [rule]}}}


async def test_a_device_is_a_disk_and_goes_with_its_container(pod: Pod, driver: str, tmp_path: Path) -> None:
    script = "head -n 1 /dev/volume; printf written | dd of=/dev/volume conv=fsync 2>/dev/null; echo $?"
    with loop_device(tmp_path / "file") as device:
        for word in ("once\n", "twice\n"):
            (tmp_path / "file").write_bytes(word.encode().ljust(SIZE, b"\0"))
            process = await pod.start_container("sh", "-c", script, **given(device))
            found = await process.finish(None)
            assert (found.text, found.status) == (f"{word}0\n", 0)
            assert (tmp_path / "file").read_bytes().startswith(b"written")
            if driver == "clh":  # it stays the pod's: who owns this VMM could have kept it open
                with pytest.raises(OSError, match="busy"):
                    os.open(device, os.O_RDONLY | os.O_EXCL)
            else:
                os.close(os.open(device, os.O_RDONLY | os.O_EXCL))  # nobody has it any more


async def test_one_that_may_only_be_read_is_not_written(pod: Pod, tmp_path: Path) -> None:
    with loop_device(tmp_path / "file") as device:
        (tmp_path / "file").write_bytes(b"fixed\n".ljust(SIZE, b"\0"))
        script = (
            "head -n 1 /dev/volume; blockdev --getro /dev/volume; "
            "(echo x >/dev/volume) 2>/dev/null || echo refused"
        )
        found = await pod.run("sh", "-c", script, **given(device, "r"))
        assert found.text == "fixed\n1\nrefused\n"
        assert (tmp_path / "file").read_bytes().startswith(b"fixed")


async def test_what_cannot_be_given_is_refused_by_name(pod: Pod, tmp_path: Path) -> None:
    with loop_device(tmp_path / "file") as device:
        held = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(RpcError, match=f"cannot open {device}: it is in use: it is mounted"):
                await pod.create("true", **given(device))
        finally:
            os.close(held)
    with (
        loop_device(tmp_path / "fixed", "--read-only") as device,
        pytest.raises(RpcError, match=f"cannot open {device}: it is read-only; give it"),
    ):
        await pod.create("true", **given(device))
    assert (await pod.run("echo", "goes on")).text == "goes on\n"


async def test_a_machine_grows_and_stays_confined(pod: Pod, driver: str) -> None:
    if driver != "clh":
        pytest.skip("this driver's machines keep their size")
    await growing.check_growth(pod, takes_cpus_away=True)
