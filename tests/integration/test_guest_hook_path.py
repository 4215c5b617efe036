"""Programs that the guest runs in the life of every container (guest_hook_path), of a shared directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from growing import end
from kata_agent.ttrpc.status import RpcError
from oci_bundle import BUSYBOX
from shim_harness import Lab
from shim_pod import Pod

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MOUNTS = "/run/kata-containers/shared/containers/sandbox-mounts"
SCRIPT = f"""#!{MOUNTS}/hooks/bin/busybox sh
echo "$0 $*" >> {MOUNTS}/log/calls
exec {MOUNTS}/hooks/bin/busybox cat > {MOUNTS}/log/state-$1
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with hooks, and one in which they write."""
    (tmp_path / "log").mkdir()
    (tmp_path / "hooks/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, tmp_path / "hooks/bin/busybox")
    for kind in ("prestart", "poststart", "poststop"):
        (tmp_path / "hooks" / kind).mkdir()
        (tmp_path / "hooks" / kind / "note").write_text(SCRIPT)
        (tmp_path / "hooks" / kind / "note").chmod(0o755)
    return tmp_path


def configured(lab: Lab, directory: Path) -> Path:
    mounts = [f"{directory}/hooks", f"{directory}/log:rw"]
    name = lab.new_id("guest-hooks")
    return lab.configure(name, sandbox_bind_mounts=mounts, guest_hook_path=f"{MOUNTS}/hooks")


@pytest.fixture
async def pod(lab: Lab, directory: Path) -> AsyncIterator[Pod]:
    async with Pod.running(lab, configured(lab, directory)) as pod:
        yield pod


async def test_each_kind_is_run_for_every_container(pod: Pod, directory: Path) -> None:
    calls = directory / "log/calls"
    of_pod = calls.read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in of_pod] == ["prestart", "poststart"]
    process = await pod.create("sleep", "1000")
    await process.start()
    await end(process)
    of_container = calls.read_text().splitlines()[len(of_pod) :]
    assert of_container == [
        f"{MOUNTS}/hooks/{kind}/note {kind}" for kind in ("prestart", "poststart", "poststop")
    ]
    state = json.loads((directory / "log/state-prestart").read_text())
    assert state["id"] == process.id
    assert state["pid"] > 0


async def test_a_directory_without_hooks_starts_no_pod(lab: Lab, directory: Path) -> None:
    for kind in ("prestart", "poststart", "poststop"):
        (directory / "hooks" / kind / "note").unlink()
    with pytest.raises(RpcError, match=f"guest_hook_path: the guest has no hooks in {MOUNTS}/hooks"):
        await Pod.start(lab, environment={"KATA_CONF_FILE": str(configured(lab, directory))})
