"""A guest that checks its image by the hash in the configuration: dm-verity, on a live pod."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_hypervisor.verity import Verity
from kata_runtime.image import manifest
from node import Node

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

INITRD, IMAGE = "kata-initrd-verity.img", "kata-image.erofs"


@pytest.fixture
def checked(node: Node, guest_image: Path) -> Callable[..., Path]:
    """Writes configurations of guests that check their image."""
    made = manifest.read(guest_image)
    if made is None:
        pytest.skip(f"the guest image in {guest_image} has no hashes: run make image")

    def configuration(name: str, **changes: Path | str) -> Path:
        values = {"initrd": guest_image / INITRD, "kernel_verity_params": made.verity, **changes}
        return node.configuration(name, **values)

    return configuration


def test_the_root_is_the_device_that_is_checked(node: Node, checked: Callable[..., Path]) -> None:
    look = "cat /sys/block/dm-0/dm/name; ls /sys/block/dm-0/slaves; cat /proc/cmdline"
    result = node.run("sh", "-c", look, options=("--runtime-config-path", checked("checked")))
    assert result.returncode == 0, result.stderr
    name, below, line = result.stdout.splitlines()
    assert (name, below) == ("verity", "vda")
    assert "root=/dev/dm-0" in line


@pytest.mark.parametrize("block", [0, 5000], ids=["the superblock", "a file"])
def test_an_image_that_was_changed_runs_no_container(
    node: Node, guest_image: Path, checked: Callable[..., Path], tmp_path: Path, block: int
) -> None:
    """In every block from this one on, a bit is another."""
    changed = tmp_path / IMAGE
    shutil.copy(guest_image / IMAGE, changed)
    with changed.open("r+b") as file:
        content = bytearray(file.read())
        for offset in range(block * 4096 + 2048, len(content), 4096):
            content[offset] ^= 1
        file.seek(0)
        file.write(content)
    result = node.run("true", options=("--runtime-config-path", checked("changed", image=changed)))
    assert result.returncode != 0
    assert "dm-verity" in result.stderr


def test_another_hash_is_another_image(node: Node, guest_image: Path, checked: Callable[..., Path]) -> None:
    made = manifest.read(guest_image)
    assert made is not None
    right = Verity.parse(made.verity)
    wrong = made.verity.replace(right.root_hash, right.root_hash[::-1])
    result = node.run("true", options=("--runtime-config-path", checked("hash", kernel_verity_params=wrong)))
    assert result.returncode != 0
    assert "dm-verity" in result.stderr


def test_an_initrd_that_checks_nothing_is_no_way_around(
    node: Node, guest_image: Path, checked: Callable[..., Path]
) -> None:
    path = checked("unchecked", initrd=guest_image / "kata-initrd.img")
    result = node.run("true", options=("--runtime-config-path", path))
    assert result.returncode != 0
    assert "dm-verity cannot be set up by this initrd: use kata-initrd-verity.img" in result.stderr
