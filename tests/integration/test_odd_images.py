"""Images of odd kinds: a container of one sees and does what it does with runc."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.broker.mounts import compact
from kata_runtime.containerd_api import types_pb2
from oci_bundle import make_process, make_spec, write_bundle
from odd_images import IMAGES, OddImage
from shim_pod import Pod

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not shutil.which("runc"), reason="needs runc")]


class Stack:
    """An image's layers below containerd's snapshots, and writable layers on them."""

    def __init__(self, image: OddImage, home: Path, root: Path) -> None:
        self.home = home
        self.layers = [home / str(number) for number in range(image.layers)]
        self._lower = ":".join(map(str, (*reversed(self.layers), root)))
        for layer in self.layers:
            layer.mkdir(parents=True)
        image.make(self.layers)

    def options(self, name: str) -> list[str]:
        """Of an overlay with a writable layer of its own, where containerd's snapshotter has one."""
        snapshot = self.home.with_name(f"{self.home.name}-{name}")
        for part in ("fs", "work"):
            (snapshot / part).mkdir(parents=True)
        return [f"lowerdir={self._lower}", f"upperdir={snapshot}/fs", f"workdir={snapshot}/work"]


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> OddImage:
    return IMAGES[request.param]


@pytest.fixture
def stack(shim_pod: Pod, image: OddImage) -> Stack:
    lab = shim_pod.shim.lab
    return Stack(image, lab.snapshots / lab.new_id("odd"), lab.rootfs)


@pytest.fixture
def with_runc(shim_pod: Pod, image: OddImage, stack: Stack, tmp_path: Path) -> Iterator[tuple[int, str, str]]:
    """How a container of the image ends with runc: status, output, errors."""
    user = {"uid": image.user, "gid": image.user}
    write_bundle(tmp_path / "bundle", make_spec(make_process("sh", "-c", image.script, user=user)))
    base, options = compact(",".join(stack.options("runc")))
    rootfs = tmp_path / "bundle" / "rootfs"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, rootfs], cwd=base, check=True)
    try:
        command: list[str | Path] = [
            "runc",
            "--root",
            tmp_path / "state",
            "run",
            "--bundle",
            tmp_path / "bundle",
        ]
        found = subprocess.run([*command, stack.home.name], capture_output=True, check=False)
        yield (
            found.returncode,
            found.stdout.decode("utf-8", "replace"),
            found.stderr.decode("utf-8", "replace"),
        )
    finally:
        subprocess.run(["umount", rootfs], check=True)


async def test_an_odd_image_is_what_it_is_with_runc(
    shim_pod: Pod, image: OddImage, stack: Stack, with_runc: tuple[int, str, str]
) -> None:
    mount = types_pb2.Mount(type="overlay", source="overlay", options=stack.options("ours"))
    user = {"uid": image.user, "gid": image.user}
    ours = await shim_pod.run("sh", "-c", image.script, rootfs=[mount], process={"user": user})
    texts = (ours.stdout.decode("utf-8", "replace"), ours.stderr.decode("utf-8", "replace"))
    assert (ours.status, *texts) == with_runc, (ours, with_runc)
    assert texts[0]


async def test_a_file_with_two_names_is_written_by_one_of_them(shim_pod: Pod) -> None:
    """The overlay makes two files of it. See docs/limits.md."""
    lab = shim_pod.shim.lab
    stack = Stack(IMAGES["hard links"], lab.snapshots / lab.new_id("odd"), lab.rootfs)
    mount = types_pb2.Mount(type="overlay", source="overlay", options=stack.options("ours"))
    script = "echo -more >>/four; sleep 2; cat /three; echo; cat /four"
    finished = await shim_pod.run("sh", "-c", script, rootfs=[mount])
    assert sorted(finished.text.split()) == ["upper", "upper-more"]
