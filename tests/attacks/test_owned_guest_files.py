"""A guest that owns virtiofsd, or its own files and the shim: what root's programs on the host do then."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from attack_bed import World, make_world
from kata_runtime.broker import image_cache, images
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.process import fork_broker
from kata_runtime.broker.rootfs_image import MAKER

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        monkeypatch.setattr(image_cache, "CACHE", str(made.bed.root / "cache"))
        yield made


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(world.bed.identity, str(world.bed.bundle)))
    yield broker
    assert await broker.close() == []


async def run(broker: Broker, script: str) -> str:
    """What a shell says that runs where virtiofsd does, as root: the worst that virtiofsd could become."""
    read, write = os.pipe()
    child = await broker.spawn("virtiofsd", ["/bin/sh", "-c", script], fds={1: write, 2: write})
    os.close(write)
    await child.wait()
    return drain(read)


def drain(fd: int) -> str:
    """What is left to read."""
    os.set_blocking(fd, True)
    with open(fd, encoding="utf-8", errors="replace") as pipe:
        return pipe.read().strip()


@pytest.mark.skipif(shutil.which(MAKER) is None, reason=f"{MAKER} is missing: install erofs-utils")
async def test_an_image_is_made_of_the_view_and_of_nothing_that_takes_its_place(
    world: World, broker: Broker
) -> None:
    """The owned shim stops the maker, takes the view away, and puts a tree there whose links lead out."""
    root = f"{world.bed.shared}/c/rootfs"
    (world.volume / "content").write_text("the container's")
    await broker.bind(str(world.volume), root, readonly=False)
    child, output = await broker.make_image(root)
    await child.kill(signal.SIGSTOP)
    await broker.unmount(root)
    (replaced := world.snapshots / "2" / "fs").joinpath("other").write_text("another")
    await broker.bind(str(replaced), root, readonly=False)
    await child.kill(signal.SIGCONT)
    await child.wait()
    image = Path(drain(output).rpartition(" ")[0]).read_bytes()
    assert b"the container's" in image
    assert b"another" not in image


@pytest.fixture
def endless_maker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A maker of images that does not end by itself, as one that the owned shim stopped."""
    program = world.bed.root / "maker.py"
    program.write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(images, "PROGRAM", str(program))


@pytest.mark.usefixtures("endless_maker")
async def test_no_number_of_images_fills_the_cache_at_once(world: World, broker: Broker) -> None:
    """Each maker looks at the room that is free, which those that are stopped have not taken yet."""
    roots = [f"{world.bed.shared}/c{number}" for number in range(5)]
    for root in roots:
        await broker.bind(str(world.volume), root, readonly=False)
    made = [await broker.make_image(root) for root in roots[:4]]
    with pytest.raises(RequestRefusedError, match="4 images are being made for this sandbox"):
        await broker.make_image(roots[4])
    for child, output in made:
        os.close(output)
        await child.kill()
        await child.wait()
    child, output = await broker.make_image(roots[4])
    os.close(output)
    await child.kill()
    await child.wait()


async def test_who_owns_virtiofsd_writes_to_the_pods_own_files_only(world: World, broker: Broker) -> None:
    """As root in the broker's mount namespace, with every capability: the shared tree is the limit."""
    await broker.bind(str(world.volume), f"{world.bed.shared}/c/volume", readonly=False)
    await broker.bind(str(world.host / "readonly"), f"{world.bed.shared}/c/readonly", readonly=True)
    shared = world.bed.shared
    said = await run(
        broker,
        f"cd {shared}; echo x >c/readonly/file; touch c/readonly/new new c/new; mv c d; ln -s / c/root; "
        "mknod c/volume/kmem c 1 1; cat c/volume/kmem | head -c 1; cp /bin/true c/volume/run; c/volume/run",
    )
    assert said.count("Read-only file system") == 6
    assert "Permission denied" in said  # a device, and a program, in what was shared
    assert (world.host / "readonly" / "file").read_text() == "precious readonly/file"
    assert sorted(os.listdir(world.host / "readonly")) == ["file"]
    os.unlink(world.volume / "kmem")


async def test_a_link_that_virtiofsd_plants_leads_the_broker_nowhere(world: World, broker: Broker) -> None:
    await broker.bind(str(world.volume), f"{world.bed.shared}/c/volume", readonly=False)
    world.write_as_guest()
    before = world.snapshot()
    for name in ("out", "root", "secret", "below"):
        target = f"{world.bed.shared}/c/volume/{name}"
        for action in (broker.make_directory(target), broker.bind("/usr", f"{target}/x", readonly=False)):
            with pytest.raises(RequestRefusedError, match="leads into the mount at 'volume'"):
                await action
    assert world.snapshot() == before
