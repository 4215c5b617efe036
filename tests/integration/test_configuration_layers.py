"""Drop-ins and annotations, from containerd to the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

ANNOTATION = "io.katacontainers.config.hypervisor.default_memory"


@pytest.fixture
def layered(node: Node) -> Path:
    """A configuration whose drop-in lets pods choose their memory."""
    directory = node.root / "layered"
    (directory / "config.d").mkdir(parents=True, exist_ok=True)
    path = directory / "configuration.toml"
    path.write_text(node.configuration("plain").read_text())
    (directory / "config.d" / "10-pods.toml").write_text(
        '[hypervisor.qemu]\nenable_annotations = ["default_memory"]\n'
    )
    return path


def test_an_annotation_that_a_drop_in_lets_in_reaches_the_guest(node: Node, layered: Path) -> None:
    options = ("--runtime-config-path", layered, "--annotation", f"{ANNOTATION}=300")
    result = node.run("grep", "MemTotal", "/proc/meminfo", options=options)
    assert result.returncode == 0, result.stderr
    total = int(result.stdout.split()[1]) // 1024
    assert 150 < total < 300
    assert f"configuration {layered} + 1 drop-in (sha256 " in node.log()
    assert "chosen by ConfigPath) + 1 annotation" in node.log()


def test_an_annotation_that_is_not_let_in_fails_the_pod(node: Node, layered: Path) -> None:
    name = "io.katacontainers.config.hypervisor.seccompsandbox"
    options = ("--runtime-config-path", layered, "--annotation", f"{name}=off")
    result = node.run("true", options=options)
    assert result.returncode != 0
    assert f"annotation {name}: error[KATA701] hypervisor.qemu.seccompsandbox: is refused" in result.stderr
    assert 'write enable_annotations = ["default_memory", "seccompsandbox"]' in result.stderr
