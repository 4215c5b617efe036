"""Which volumes the guest is told to keep a copy of."""

from __future__ import annotations

from typing import Any

import pytest

from kata_runtime.broker.shared_source import SharedSource
from kata_runtime.container.guest_spec import GUEST_SHARED, GUEST_WATCHED, GuestSource
from kata_runtime.container.process import Container, Process
from kata_runtime.resource.shares import Shares
from kata_runtime.stdio.files import StdioPaths

VOLUME = "/pods/x/volumes/kubernetes.io~configmap/v"


class Broker:
    """Shares everything at one place."""

    def __init__(self, place: str) -> None:
        self._place = place

    async def make_directory(self, path: str) -> None:
        pass

    async def bind(self, source: str, target: str, **how: object) -> None:
        pass

    async def share(self, source: str, **how: object) -> SharedSource:
        return SharedSource(self._place, below=["below"])


async def shared(source: str, place: str) -> tuple[GuestSource, Container]:
    mount = {"destination": "/v", "type": "bind", "source": source, "options": ["rbind", "ro"]}
    spec: dict[str, Any] = {"root": {"path": "rootfs"}, "mounts": [mount]}
    container = Container("c", "/bundle", spec, Process("c", "", StdioPaths(), {}))
    sources = await Shares(Broker(place), "/shared").share(container, ())  # type: ignore[arg-type]
    return sources[0], container


async def test_what_a_kubelet_updates_is_a_copy_that_is_only_read() -> None:
    source, container = await shared(VOLUME, ".volumes/3")
    assert source == GuestSource(f"{GUEST_WATCHED}/3", readonly=True)
    (storage,) = container.storages
    assert (storage.driver, storage.source) == ("watchable-bind", f"{GUEST_SHARED}/.volumes/3")
    assert storage.mount_point == source.path


@pytest.mark.parametrize(
    ("source", "place"), [(VOLUME, ".volumes/0/pods/x/volumes"), ("/data", ".volumes/3")]
)
async def test_a_part_of_another_volume_and_any_other_is_shared_as_it_is(source: str, place: str) -> None:
    found, container = await shared(source, place)
    assert found == GuestSource(f"{GUEST_SHARED}/{place}", below=("below",))
    assert container.storages == []
