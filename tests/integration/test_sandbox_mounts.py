"""Directories that the configuration shares with every guest (sandbox_bind_mounts), as the guest has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import RpcError
from oci_bundle import make_process, make_spec
from shim_harness import Lab
from shim_pod import TYPE, Pod

pytestmark = pytest.mark.integration


def file_server(lab: Lab, pod: Pod) -> Path:
    """The directory in /proc of the process whose root is what the pod's guest sees."""
    shared = lab.identity(pod.shim.id).shared_directory
    for link in Path("/proc").glob("[0-9]*/root"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == shared:
                return link.parent
    raise AssertionError(f"nobody serves {shared}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to read, one to write, and a file."""
    directory = tmp_path_factory.mktemp("sources")
    for name in ("tools", "cache"):
        (directory / name).mkdir()
    (directory / "tools/tool").write_text("for every guest\n")
    (directory / "settings").write_text("of the host\n")
    return directory


def environment(lab: Lab, *entries: str) -> dict[str, str]:
    configuration = lab.configure(lab.new_id("guest-mounts"), sandbox_bind_mounts=list(entries))
    return {"KATA_CONF_FILE": str(configuration)}


@pytest.fixture(scope="module")
async def pod(lab: Lab, sources: Path) -> AsyncIterator[Pod]:
    """A pod whose guest gets them; its end leaves the sources as they are."""
    entries = [f"{sources}/tools", f"{sources}/cache:rw", f"{sources}/settings:ro"]
    pod = await Pod.start(lab, environment=environment(lab, *entries))
    try:
        yield pod
    finally:
        await pod.shim.close()
    assert str(sources) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert (sources / "tools/tool").exists()


async def test_what_is_served_to_the_guest_has_them_and_is_written_only_where_it_may(
    lab: Lab, pod: Pod
) -> None:
    server = file_server(lab, pod)
    mounts = server / "root/sandbox-mounts"
    assert sorted(path.name for path in mounts.iterdir()) == ["cache", "settings", "tools"]
    assert (mounts / "tools/tool").read_text() == "for every guest\n"
    assert (mounts / "settings").read_text() == "of the host\n"
    fields = [line.split() for line in (server / "mountinfo").read_text(encoding="utf-8").splitlines()]
    options = {line[4]: line[5].split(",") for line in fields if line[4].startswith("/sandbox-mounts/")}
    assert {place: options[place][0] for place in options} == {
        "/sandbox-mounts/cache": "rw",
        "/sandbox-mounts/settings": "ro",
        "/sandbox-mounts/tools": "ro",
    }
    assert all({"nosuid", "nodev", "noexec"} <= set(of_one) for of_one in options.values())


async def test_a_container_does_not_see_them(pod: Pod) -> None:
    found = await pod.run(
        "sh", "-c", "ls -d /run/kata-containers; grep -c sandbox-mounts /proc/self/mountinfo"
    )
    assert found.stdout == b"0\n", found


async def test_a_missing_source_is_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    absent = f"{tmp_path}/absent"
    name = lab.new_id("absent")
    shim = await lab.start_shim(
        name,
        make_spec(make_process("true"), annotations={TYPE: "sandbox"}),
        environment=environment(lab, absent),
    )
    with pytest.raises(RpcError, match=f"cannot share {absent} .*sandbox_bind_mounts.*: No such file"):
        await shim.create(container_id=name)
    await shim.close()
