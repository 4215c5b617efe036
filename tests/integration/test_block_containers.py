"""A pod of several containers on hypervisors that share no files: `make test-rig`.

KATA_TEST_CLOUD_HYPERVISOR and KATA_TEST_FIRECRACKER name these programs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import shim_harness
import shim_process
import shipped_configuration
from kata_agent.ttrpc.status import RpcError
from shim_harness import Lab
from shim_pod import Pod

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]

PROGRAMS = {
    "clh": "KATA_TEST_CLOUD_HYPERVISOR",
    "firecracker": "KATA_TEST_FIRECRACKER",
    "dragonball": "",
}
UNKNOWN = ("accelerator", "virtio_fs_daemon")


@pytest.fixture(scope="module", params=list(PROGRAMS))
async def pod(request: pytest.FixtureRequest, lab: Lab, guest_image: Path) -> AsyncIterator[Pod]:
    """A pod without shared files; afterwards nothing of it is left."""
    values = shipped_configuration.for_image(guest_image) | {"shared_fs": "none"}
    if variable := PROGRAMS[request.param]:
        if not Path(os.environ.get(variable, "/nonexistent")).exists():
            pytest.skip(f"{variable} names no program")
        values["path"] = Path(os.environ[variable])
    fit = {key: value for key, value in values.items() if key not in UNKNOWN}
    path = lab.directory / f"{request.param}.toml"
    path.write_text(shipped_configuration.render(fit, request.param))
    with pytest.MonkeyPatch.context() as patched:
        for module in (shim_harness, shim_process):  # under emulation
            patched.setattr(module, "PATIENCE", 300.0)
        async with Pod.running(lab, path) as pod:
            yield pod


async def test_later_containers_are_plugged_in_and_run(pod: Pod) -> None:
    assert (await pod.exec("echo", "first")).text == "first\n"
    others = [await pod.start_container("sleep", "1000") for _ in range(2)]
    for number, other in enumerate(others):
        written = await pod.exec("sh", "-c", f"echo {number} > /made; cat /made", container=other)
        assert (written.status, written.text) == (0, f"{number}\n")
    for other in others:
        await other.call("Kill", signal=9)
        await other.wait()
        await other.delete()
    # More, one after the other, than the machine has room for at a time.
    for number in range(10):
        assert (await pod.run("echo", str(number))).text == f"{number}\n"


async def test_a_volume_is_refused(pod: Pod) -> None:
    bind = {"type": "bind", "source": "/etc/hostname", "destination": "/host", "options": ["rbind"]}
    with pytest.raises(RpcError, match="shares no files of the host, so there can be no mount on /host"):
        await pod.create("true", mounts=[bind])
    assert (await pod.run("echo", "goes on")).text == "goes on\n"
