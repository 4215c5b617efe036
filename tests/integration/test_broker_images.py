"""Images of root file systems: of what is mounted for the sandbox, and of nothing that a link in it names."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker_bed import Bed, make_bed
from kata_hypervisor.errors import LaunchError, NotSupportedError
from kata_runtime.broker import image_cache
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.process import fork_broker
from kata_runtime.broker.rootfs_image import MAKER
from kata_runtime.resource.block_rootfs import run_maker

pytestmark = [
    pytest.mark.integration,
    pytest.mark.rig,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(shutil.which(MAKER) is None, reason=f"{MAKER} is missing: install erofs-utils"),
]


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A sandbox, with a cache of images of its own."""
    with make_bed(monkeypatch) as made:
        monkeypatch.setattr(image_cache, "CACHE", str(made.root / "cache"))
        yield made


@pytest.fixture
async def broker(bed: Bed) -> AsyncIterator[Broker]:
    """Its broker."""
    channel, pid = fork_broker(bed.identity, str(bed.bundle), namespace=True)
    broker = Broker(channel, pid)
    yield broker
    assert await broker.close() == []


async def make(broker: Broker, root: str) -> tuple[str, int | None]:
    """Let an image be made; returns the last line of the output, and the exit status."""
    output, status = await run_maker(broker, root)
    return output.strip().rpartition("\n")[2], status.code


async def test_an_image_of_a_mount_is_opened_by_its_name(bed: Bed, broker: Broker) -> None:
    (bed.data / "file").write_text("content")
    root = f"{bed.shared}/c/rootfs"
    await broker.bind(str(bed.data), root, readonly=False)
    line, status = await make(broker, root)
    assert status == 0, line
    path = Path(line.rpartition(" ")[0])
    descriptor, size = await broker.open_disk(path, write=False)
    try:
        assert size == path.stat().st_size
        assert os.pread(descriptor, 4, 1024) == b"\xe2\xe1\xf5\xe0"  # erofs
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


async def test_nothing_else_is_opened(broker: Broker) -> None:
    cache = Path(image_cache.CACHE)
    absent = cache / f"{'a' * 64}.erofs"
    for path, write in (
        (cache / f"{'a' * 64}.erofs", True),
        (Path("/etc/passwd"), False),
        (cache / "x", False),
    ):
        with pytest.raises(NotSupportedError, match="read-only an image of a root file system"):
            await broker.open_disk(path, write=write)
    with pytest.raises(LaunchError, match="No such file or directory"):
        await broker.open_disk(absent, write=False)
    with pytest.raises(LaunchError, match="open_image: name may not be"):
        await broker.open_disk(cache / "short.erofs", write=False)


async def test_no_link_in_the_files_leads_out_of_them(bed: Bed, broker: Broker) -> None:
    secret = bed.root / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (bed.data / "link").symlink_to(secret)
    root = f"{bed.shared}/c/rootfs"
    await broker.bind(str(bed.data), root, readonly=False)
    # As a directory would be that a guest has replaced by a link while the image is made.
    child, reader = await broker.make_image(root)
    os.close(reader)
    await child.kill()
    await child.wait()
    seen = f"/proc/{broker.pid}/root{root}"
    assert os.readlink(f"{seen}/link") == str(secret)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        os.listdir(f"{seen}/link")
    with pytest.raises(OSError, match="Read-only file system"):
        Path(f"{seen}/new").touch()


async def test_what_is_not_mounted_or_not_ours_is_refused(bed: Bed, broker: Broker) -> None:
    await broker.make_directory(f"{bed.shared}/c")
    for root in (f"{bed.shared}/c", "/etc"):
        with pytest.raises(RequestRefusedError, match="was not mounted by this broker"):
            await broker.make_image(root)
