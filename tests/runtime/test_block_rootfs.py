"""A container's root file system as a disk: what the guest has to mount, and what cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kata_agent.guest import storage
from kata_agent.protos import agent_pb2
from kata_hypervisor.contract import Disk
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import SandboxError, UnsupportedError
from kata_runtime.resource import block_rootfs
from kata_runtime.resource.block_rootfs import BlockRootfs, overlay_storages
from kata_runtime.resource.shares import RootfsMount
from kata_runtime.stdio.files import StdioPaths
from local_host import LocalHost


class Maker(LocalHost):
    """A broker, whose maker of images is a shell script."""

    def __init__(self, script: str) -> None:
        super().__init__()
        self.script = script
        self.asked: list[str] = []

    async def make_image(self, root: str) -> tuple[Any, int]:
        """See Broker."""
        self.asked.append(root)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            child = await self.spawn("maker", ["/bin/sh", "-c", self.script], fds={1: writer, 2: writer})
        finally:
            os.close(writer)
        return child, reader


class FakeShares:
    """Shares that note what is shared now."""

    def __init__(self) -> None:
        self.shared: list[str] = []

    async def share(self, container: Any, mounts: object) -> dict[int, str]:
        container.home = "/shared/c"
        self.shared.append(container.id)
        return {}

    async def unshare(self, container: Any) -> None:
        self.shared.remove(container.id)


def container(*mounts: dict[str, Any]) -> Container:
    return Container("c", "/bundle", {"mounts": list(mounts)}, Process("c", "", StdioPaths(), {}))


def rootfs(script: str) -> tuple[BlockRootfs, Maker, FakeShares]:
    maker, shares = Maker(script), FakeShares()
    return BlockRootfs(maker, shares), maker, shares  # type: ignore[arg-type]


async def test_an_image_is_made_where_the_files_are_mounted_for_a_moment() -> None:
    block, maker, shares = rootfs("echo '/cache/1.erofs 750'")
    one = container()
    assert await block.make(one, (), "/dev/vdb") == Disk("rootfs", Path("/cache/1.erofs"), read_only=True)
    assert maker.asked == ["/shared/c/rootfs"]
    assert shares.shared == []
    assert one.storages == overlay_storages("c", "/dev/vdb", 0o750)


async def test_later_images_are_located_once_they_are_plugged_in() -> None:
    block, _, shares = rootfs("echo '/cache/1.erofs 755'")
    for name in ("rootfs_1", "rootfs_2"):
        one = container()
        assert await block.make_later(one, ()) == Disk(name, Path("/cache/1.erofs"), read_only=True)
        block_rootfs.locate(one, "/dev/vdc")
        assert one.storages == overlay_storages("c", "/dev/vdc", 0o755)
    assert shares.shared == []


async def test_a_block_device_is_not_plugged_in() -> None:
    block, maker, _ = rootfs("false")
    with pytest.raises(UnsupportedError, match="is the block device /dev/dm-3, which cannot be plugged"):
        await block.make_later(container(), (RootfsMount("ext4", "/dev/dm-3", ("rw",)),))
    assert maker.asked == []


def test_the_guest_knows_how_to_mount_it() -> None:
    storages = overlay_storages("c", "/dev/vdb", 0o755)
    assert {one.driver for one in storages} <= set(storage.drivers())
    assert all(one.mount_point.startswith("/run/") for one in storages)
    lower, memory, upper, work, root = storages
    assert list(root.options) == [
        f"lowerdir={lower.mount_point}",
        f"upperdir={upper.mount_point}",
        f"workdir={work.mount_point}",
    ]
    assert root.mount_point == "/run/kata-containers/shared/containers/c/rootfs"
    assert upper.mount_point.startswith(memory.mount_point)
    assert list(upper.options) == ["mode=755"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'mkfs.erofs: no space left' >&2; exit 1", "mkfs.erofs: no space left"),
        ("exit 3", "cannot make an image of /shared/c/rootfs: exit status 3"),
        ("kill -9 $$", "cannot make an image of /shared/c/rootfs: killed by SIGKILL"),
        ("true", "cannot make an image of /shared/c/rootfs: exit status 0"),
    ],
)
async def test_an_image_that_cannot_be_made(script: str, message: str) -> None:
    block, _, shares = rootfs(script)
    with pytest.raises(SandboxError, match=message):
        await block.make(container(), (), "/dev/vdb")
    assert shares.shared == []


async def test_a_snapshotters_block_device_is_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_rootfs, "_is_block_device", lambda mount: True)
    block, maker, _ = rootfs("false")
    one = container()
    mount = RootfsMount("ext4", "/dev/dm-3", ("rw",))
    assert await block.make(one, (mount,), "/dev/vdb") == Disk("rootfs", Path("/dev/dm-3"), read_only=False)
    assert maker.asked == []
    [only] = one.storages
    assert (only.driver, only.source, only.fstype, list(only.options)) == ("blk", "/dev/vdb", "ext4", ["rw"])


async def test_a_mount_of_the_hosts_is_refused() -> None:
    block, _, _ = rootfs("true")
    bind = {"type": "bind", "source": "/etc", "destination": "/host", "options": ["rbind"]}
    with pytest.raises(UnsupportedError, match="no mount on /host; remove it, or configure a hypervisor"):
        await block.make(container(bind), (), "/dev/vdb")
    with pytest.raises(UnsupportedError, match="no mount on /host"):
        await block.make_later(container(bind), ())


async def test_a_volume_in_the_guests_memory_needs_no_file_of_the_host() -> None:
    block, _, _ = rootfs("echo '/cache/1.erofs 755'")
    one = container({"destination": "/cache", "type": "bind", "source": "/pods/cache"})
    one.memory[0] = agent_pb2.Storage(driver="ephemeral")
    await block.make(one, (), "/dev/vdb")
    assert one.storages == overlay_storages("c", "/dev/vdb", 0o755)
