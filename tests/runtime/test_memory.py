"""Volumes in the host's memory, which the guest has in its own."""

from __future__ import annotations

from typing import Any

import pytest

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.guest_spec import GUEST_MEMORY, GuestSource
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import UnsupportedError
from kata_runtime.resource import memory
from kata_runtime.stdio.files import StdioPaths

VOLUME = "/pods/x/volumes/kubernetes.io~empty-dir/cache"
MEMORY = {"kind": "tmpfs", "device": 0x2A, "path": "", "size": "3072k", "mode": 0o2777, "user": 0, "group": 7}


class Broker:
    """Answers with what it is given."""

    def __init__(self, **found: dict[str, Any] | None) -> None:
        self.found = found
        self.asked: list[str] = []

    async def find_memory(self, source: str) -> dict[str, Any] | None:
        self.asked.append(source)
        try:
            return self.found[source.rpartition("/")[2]]
        except KeyError:
            raise RequestFailedError("no such file", 2) from None


def container(*sources: str) -> Container:
    mounts = [
        {"destination": "/v", "type": "bind", "source": source, "options": ["rw"]} for source in sources
    ]
    return Container("c", "/bundle", {"mounts": mounts}, Process("c", "", StdioPaths(), {}))


async def give(made: Container, **found: dict[str, Any] | None) -> dict[int, GuestSource]:
    return await memory.give(made, Broker(**found))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "path", "options"),
    [
        ({}, f"{GUEST_MEMORY}/2a", ["nosuid", "mode=2777", "uid=0", "gid=7", "size=3072k"]),
        ({"path": "a/b"}, f"{GUEST_MEMORY}/2a/a/b", ["nosuid", "mode=2777", "uid=0", "gid=7", "size=3072k"]),
        ({"size": ""}, f"{GUEST_MEMORY}/2a", ["nosuid", "mode=2777", "uid=0", "gid=7"]),
    ],
)
async def test_the_guest_has_a_tmpfs_like_the_hosts(
    changes: dict[str, Any], path: str, options: list[str]
) -> None:
    made = container("/data", VOLUME)
    given = await give(made, cache={**MEMORY, "flags": ["nosuid"], **changes})
    assert given == {1: GuestSource(path, flags=("nosuid",))}
    (storage,) = made.memory.values()
    assert (storage.driver, storage.fstype, storage.mount_point) == (
        "ephemeral",
        "tmpfs",
        f"{GUEST_MEMORY}/2a",
    )
    assert list(storage.options) == options


async def test_what_is_on_disk_or_not_there_is_shared_as_any_other() -> None:
    made = container(VOLUME, f"{VOLUME}/../gone")
    assert await give(made, cache=None) == {}
    assert made.memory == {}


async def test_huge_pages_are_refused_by_the_name_of_the_volume() -> None:
    with pytest.raises(UnsupportedError, match="its volume /v is of huge pages of the host"):
        await give(container(VOLUME), cache={**MEMORY, "kind": "hugetlbfs", "flags": []})
