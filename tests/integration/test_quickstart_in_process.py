"""`make run HYPERVISOR=dragonball` on a KVM that runs unmodified guests: `make test-rig`, whose log has all
that it prints.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(600)]

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/run.py"
# Below /run: in the rig no layer of a container can be elsewhere.
HOME = Path("/run/kata-quickstart-test")


def test_the_quickstart_shows_a_container_and_a_unikernel_in_the_runtimes_own_process(
    guest_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(QUICKSTART), "--hypervisor", "dragonball", "--image", str(guest_image), "--home", str(HOME)]
    try:
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
    with capsys.disabled():
        print(f"\n{done.stdout}{done.stderr}")
    kernel = json.loads((guest_image / "manifest.json").read_text())["kernel"]
    assert (done.returncode, done.stderr) == (0, "")
    assert f"    guest kernel: {kernel}\n" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    threads = [row for row in rows if row[1:2] == ["shim"]]
    assert {row[4] for row in threads} == {"2 (filter)"}
    assert {row[5] for row in threads} == {"1", "2"}, "one filter for all of it, one more for the vCPU"
    assert "unikernel: hello and wait" in done.stdout
