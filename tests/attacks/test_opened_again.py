"""A descriptor that a guest gets of one process, and opens again in another: virtiofsd is root with a /proc.

Who owns the shim, or the machine in it, sends what is open there to virtiofsd, beside the guest's memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from attack_bed import World, make_world
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.virtiofsd import NAME
from kata_runtime.broker import image_cache
from kata_runtime.broker.client import Broker
from kata_runtime.broker.operations import files
from kata_runtime.broker.process import fork_broker
from kata_runtime.pod import giving_up
from kata_runtime.stdio import moving

PYTHON = "/usr/bin/python3"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs {PYTHON}"),
]

BASE, COUNT = 1_900_000_000, 65536
OWNED = """
import array, os, socket
connection = socket.socket(fileno=3)
_, ancillary, _, _ = connection.recvmsg(1, 100)
descriptor = array.array("i", ancillary[0][2])[0]
gained = []
for name, attempt in {
    "read": lambda: os.pread(descriptor, 1, 0),
    "mode": lambda: os.fchmod(descriptor, 0o666),
    "write": lambda: os.pwrite(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), b"owned", 0),
    "truncate": lambda: os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_TRUNC),
}.items():
    try:
        attempt()
    except OSError:
        continue
    gained.append(name)
connection.send(" ".join(gained).encode())
"""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        monkeypatch.setattr(image_cache, "CACHE", str(made.bed.root / "cache"))
        yield made


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(world.bed.identity, str(world.bed.bundle)))
    await broker.take_user(BASE, COUNT)
    yield broker
    assert await broker.close() == []


async def pass_on(broker: Broker, world: World, descriptor: int) -> str:
    """What a guest that owns virtiofsd does with a descriptor that it is sent."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = await broker.spawn(
                *(NAME, [PYTHON, "-ISc", OWNED]),
                fds={3: theirs.fileno()},
                privileges=Privileges(proc=True, serves=Path(world.bed.shared), network=False),
            )
        socket.send_fds(ours, [b"x"], [descriptor])
        gained = await asyncio.to_thread(ours.recv, 100)
    await child.wait()
    return gained.decode()


async def test_a_container_s_config_json_is_read_only_for_root_too(world: World, broker: Broker) -> None:
    """Whoever writes it names the sources that the pod may have next: the host's root."""
    reply = await broker._request(files.open_spec, bundle=str(world.bed.bundle))
    before = (world.bed.bundle / "config.json").read_bytes()
    assert await pass_on(broker, world, reply.descriptors[0]) == "read"
    assert (world.bed.bundle / "config.json").read_bytes() == before
    os.close(reply.descriptors[0])


async def test_an_image_that_other_pods_have_is_read_only_for_root_too(world: World, broker: Broker) -> None:
    (cache := Path(image_cache.CACHE)).mkdir()
    (image := cache / ("ab" * 32 + ".erofs")).write_bytes(b"every pod's")
    descriptor, _ = await broker.open_disk(image, write=False)
    assert await pass_on(broker, world, descriptor) == "read"
    assert image.read_bytes() == b"every pod's"
    os.close(descriptor)


async def test_what_a_sealed_shim_has_open_to_read_is_read_only_for_root_too(
    world: World, broker: Broker
) -> None:
    """The guest's image and a template, which the machine in a shim has open."""
    (image := world.bed.root / "image").write_bytes(b"every pod's")
    with image.open("rb") as opened:
        giving_up.hold_files_read_only()
        assert await pass_on(broker, world, opened.fileno()) == "read"
        assert opened.read() == b"every pod's"
    assert image.read_bytes() == b"every pod's"


async def test_a_container_s_log_is_made_no_program_of_its_owner(world: World, broker: Broker) -> None:
    """Its owner is root, and so is virtiofsd, which may set the set-user-ID bit of what it has open."""
    (log := world.bed.root / "log").write_text("line\n")
    log.chmod(0o640)
    descriptor = await broker.open_log(str(log))
    await pass_on(broker, world, descriptor)
    os.write(descriptor, b"another\n")
    while moving.queued(descriptor):  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(0.01)
    os.close(descriptor)
    await broker.settle_logs()
    assert log.read_text() == "line\nanother\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


STANDARD_STREAMS = """
import os, stat
gained = []
for descriptor in (0, 2):
    found = os.fstat(descriptor)
    for name, attempt in {
        "mode": lambda: os.fchmod(descriptor, stat.S_IMODE(found.st_mode)),
        "owner": lambda: os.fchown(descriptor, found.st_uid, found.st_gid),
    }.items():
        try:
            attempt()
        except OSError:
            continue
        gained.append(name)
print("device" if stat.S_ISCHR(os.fstat(0).st_mode) else "none", *gained)
"""


async def test_virtiofsd_cannot_take_the_host_s_dev_null_from_its_users(world: World, broker: Broker) -> None:
    """Its standard streams are the host's /dev/null, whose owner is root of its user namespace too."""
    read, write = os.pipe()
    child = await broker.spawn(
        *(NAME, [PYTHON, "-ISc", STANDARD_STREAMS]),
        fds={1: write},
        privileges=Privileges(proc=True, serves=Path(world.bed.shared), network=False),
    )
    os.close(write)
    with os.fdopen(read) as output:
        found = await asyncio.to_thread(output.read)
    await child.wait()
    assert found.split() == ["device"]


LOOK = """
import os
for base, _, names in os.walk("/proc", topdown=True):
    if base != "/proc" and not base.startswith("/proc/sys"):
        continue
    for path in (os.path.join(base, name) for name in names):
        try:
            with open(path, "rb", buffering=0) as file:
                private = not os.fstat(file.fileno()).st_mode & 0o004
                if file.read(1) and (private or "key" in os.path.basename(path)):
                    print(path)
        except OSError:
            continue
"""
HARMLESS = ("/proc/sys/kernel/", "/proc/sys/net/", "/proc/sys/vm/")
"""Settings, of the network namespace that is its own too."""


async def test_proc_says_nothing_of_the_host_s_memory_to_virtiofsd(world: World, broker: Broker) -> None:
    """What only root may read there takes no capability, and its user is root."""
    read, write = os.pipe()
    child = await broker.spawn(
        *(NAME, [PYTHON, "-ISc", LOOK]),
        fds={1: write},
        privileges=Privileges(proc=True, serves=Path(world.bed.shared), network=False),
    )
    os.close(write)
    with os.fdopen(read) as output:
        found = (await asyncio.to_thread(output.read)).split()
    await child.wait()
    assert [path for path in found if not path.startswith(HARMLESS)] == []
