"""A log level that works: the configuration's, and that of a sealed sandbox while it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from node import Node
from shipped_configuration import Value

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

KATA_CTL = str(Path(sys.executable).parent / "kata-ctl")


def levels(*words: str) -> list[str]:
    """Run kata-ctl log-level to its end."""
    result = subprocess.run([KATA_CTL, "log-level", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_guests_console_is_logged_where_the_hypervisor_debugs(node: Node) -> None:
    path = node.configuration("console", **{"hypervisor.qemu.enable_debug": True})
    container = node.new_id()
    assert node.run("true", container=container, options=("--runtime-config-path", path)).returncode == 0
    lines = [line for line in node.log().splitlines() if f"sandbox={container}" in line]
    assert any("level=debug" in line and "Linux version" in line for line in lines)


def test_the_level_of_a_sealed_sandbox_changes(node: Node) -> None:
    values: dict[str, Value] = {"runtime.log_level": "error", "agent.kata.enable_debug": True}
    path = node.configuration("quiet", **values)
    with node.pod("--runtime-config-path", path) as pod:
        assert levels(pod.sandbox) == ["runtime", "error", "hypervisor", "info"]
        assert pod.run("true").returncode == 0
        assert levels(pod.sandbox, "debug") == ["runtime", "debug", "hypervisor", "debug"]
        container = node.new_id()
        assert pod.run("true", container=container).returncode == 0

        def told() -> list[str]:
            return [line for line in node.log().splitlines() if f"container {container} removed" in line]

        node.until(told, "the guest's console is logged")
        assert levels(pod.sandbox, "runtime=error", "hypervisor=error")[1::2] == ["error", "error"]
        assert all(f"sandbox={pod.sandbox}" in line for line in told())
