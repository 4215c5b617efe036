"""Images of odd kinds: a container of one sees and does what it does with runc."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import RpcError
from kata_runtime.broker.mounts import compact
from kata_runtime.containerd_api import types_pb2
from oci_bundle import make_process, make_spec, write_bundle
from odd_images import IMAGES, OddImage, links_to_elsewhere
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


@contextmanager
def run_by_runc(stack: Stack, directory: Path, script: str, user: int) -> Iterator[tuple[int, str, str]]:
    """How a container of a stack ends with runc: status, output, errors."""
    process = make_process("sh", "-c", script, user={"uid": user, "gid": user})
    bundle = directory / "bundle"
    write_bundle(bundle, make_spec(process))
    base, options = compact(",".join(stack.options("runc")))
    rootfs = bundle / "rootfs"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, rootfs], cwd=base, check=True)
    try:
        command: list[str | Path] = [
            "runc",
            "--root",
            directory / "state",
            "run",
            "--bundle",
            bundle,
            stack.home.name,
        ]
        found = subprocess.run(command, capture_output=True, check=False)
        said, errors = (text.decode("utf-8", "replace") for text in (found.stdout, found.stderr))
        yield found.returncode, said, errors
    finally:
        subprocess.run(["umount", rootfs], check=True)


@pytest.fixture
def with_runc(image: OddImage, stack: Stack, tmp_path: Path) -> Iterator[tuple[int, str, str]]:
    with run_by_runc(stack, tmp_path, image.script, image.user) as found:
        yield found


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


async def test_a_link_in_the_place_of_dev_is_refused_as_with_runc(shim_pod: Pod, tmp_path: Path) -> None:
    mount, refused = linked("dev", shim_pod, tmp_path)
    assert refused
    with pytest.raises(RpcError, match="/dev"):
        await shim_pod.run("true", rootfs=[mount])


@pytest.mark.parametrize(("name", "file"), [("proc", "self/comm"), ("sys", "kernel")])
async def test_a_link_in_the_place_of_proc_or_sys_is_followed_in_the_root(
    shim_pod: Pod, name: str, file: str, tmp_path: Path
) -> None:
    """Where runc refuses the image. See docs/limits.md."""
    mount, refused = linked(name, shim_pod, tmp_path)
    assert "must be mounted on ordinary directory" in refused
    finished = await shim_pod.run("ls", "-d", f"/{name}/{file}", f"/real/{name}/{file}", rootfs=[mount])
    assert set(finished.text.split()) == {f"/{name}/{file}", f"/real/{name}/{file}"}


def linked(name: str, pod: Pod, directory: Path) -> tuple[types_pb2.Mount, str]:
    """A root file system with a link to elsewhere in it for a name, and what runc says of it."""
    lab = pod.shim.lab
    stack = Stack(links_to_elsewhere(name), lab.snapshots / lab.new_id("odd"), lab.rootfs)
    with run_by_runc(stack, directory, "true", 0) as (status, _, errors):
        assert status != 0
    return types_pb2.Mount(type="overlay", source="overlay", options=stack.options("ours")), errors
