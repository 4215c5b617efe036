"""What a user of containerd reads when the shim's filter has refused a call."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kata_runtime.broker import supervisor
from node import FOREVER, Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

SENTENCE = re.compile(
    r"seccomp: the runtime's process called execve \(59\) on thread kata-shim \(tid \d+\), "
    r"which policy x86_64 \[[a-z -]+\] does not allow: the call was refused and the pod ended"
)


def provoke(sandbox: str) -> subprocess.CompletedProcess[str]:
    kata_ctl = str(Path(sys.executable).parent / "kata-ctl")
    return subprocess.run(
        [kata_ctl, "seccomp", "provoke", sandbox], capture_output=True, text=True, check=False
    )


def test_ctr_shows_the_call(each_node: Node) -> None:
    node = each_node
    path = node.configuration("debugged", **{"runtime.enable_debug": True})
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        asked = provoke(client.container)
        assert asked.returncode == 0, asked.stderr
        assert client.wait() == 137
        assert client.errors.startswith(f"kata: container {client.container} was stopped: seccomp: ")
        assert SENTENCE.search(client.errors)
        assert SENTENCE.search(node.log())


def test_a_shim_that_stays_is_killed_and_its_end_explained(node: Node) -> None:
    """Nobody deletes the container, so the shim would wait for ever; the broker does not."""
    path = node.configuration("debugged", **{"runtime.enable_debug": True})
    with node.detached(*FOREVER, options=("--runtime-config-path", path)) as container:
        shim = node.pids(container)["shim"]
        assert provoke(container).returncode == 0
        node.until(lambda: not Path(f"/proc/{shim}").exists(), "the shim's end", 10 * supervisor.GRACE)
        node.until(lambda: len(SENTENCE.findall(node.log())) >= 2, "the sentence of shim delete")
        assert node.status(container) in (None, "STOPPED")


def test_a_shim_that_does_not_debug_is_not_provoked(node: Node) -> None:
    with node.running(*FOREVER) as client:
        asked = provoke(client.container)
        assert asked.returncode == 1
        assert "set enable_debug = true in [runtime]" in asked.stderr
        time.sleep(0.1)
        assert not client.ended
