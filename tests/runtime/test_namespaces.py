"""A container that is to share what only the host has is refused, by the name of what it asked for."""

from __future__ import annotations

from typing import Any

import pytest

from kata_runtime.container import namespaces
from kata_runtime.errors import UnsupportedError

OWN = ("pid", "ipc", "uts", "mount", "network")


def spec(*kinds: str, **paths: str) -> dict[str, Any]:
    entries = [{"type": kind, **({"path": paths[kind]} if kind in paths else {})} for kind in kinds]
    return {"linux": {"namespaces": entries}}


@pytest.mark.parametrize("first", [True, False])
def test_what_a_container_has_for_itself_is_its_guests(first: bool) -> None:
    namespaces.refuse(spec(*OWN, network="/run/netns/x"), "container web", first=first)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("pid", "the host's processes"), ("ipc", "the host's shared memory"), ("uts", "the host's host name")],
)
def test_what_is_the_hosts_is_refused(kind: str, said: str, first: bool) -> None:
    without = spec(*(one for one in OWN if one != kind))
    with pytest.raises(UnsupportedError, match=f"container web in a virtual machine cannot use {said}"):
        namespaces.refuse(without, "container web", first=first)


def test_the_hosts_network_is_refused_by_its_own_name() -> None:
    namespaces.refuse(spec("pid", "ipc", "mount"), "container web", first=True)


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts"])
def test_another_pods_is_refused_and_the_pods_own_is_not(kind: str) -> None:
    joined = spec(*OWN, **{kind: f"/proc/1/ns/{kind}"})
    with pytest.raises(UnsupportedError, match=f"cannot join the {kind} namespace /proc/1/ns/{kind}"):
        namespaces.refuse(joined, "container web", first=True)
    namespaces.refuse(joined, "container web", first=False)


@pytest.mark.parametrize("linux", [None, {}, {"namespaces": None}])
def test_no_entry_at_all_is_the_hosts(linux: Any) -> None:
    with pytest.raises(UnsupportedError, match="the host's processes"):
        namespaces.refuse({"linux": linux}, "container web", first=True)


def test_processes_of_a_container_or_of_its_pod() -> None:
    own = [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]
    assert not namespaces.shares_processes({"linux": {"namespaces": own}})
    shared = [{"type": "pid", "path": "/proc/7/ns/pid"}, *own[1:]]
    assert namespaces.shares_processes({"linux": {"namespaces": shared}})
    assert not namespaces.shares_processes({})
