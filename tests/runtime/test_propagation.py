"""Mounts that cannot pass between a guest and the host: refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from kata_runtime.container import propagation
from kata_runtime.errors import UnsupportedError


def spec(*options: str, kind: str = "bind") -> dict[str, Any]:
    return {"mounts": [{"type": kind, "source": "/s", "destination": "/volume", "options": list(options)}]}


@pytest.mark.parametrize("option", ["shared", "rshared"])
def test_mounts_that_are_to_reach_the_host_are_refused(option: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"container web .*: its volume /volume is {option} \(mountProp"
    ):
        propagation.check(spec("rbind", "rw", option), "container web")


@pytest.mark.parametrize("option", ["slave", "rslave"])
def test_mounts_that_are_to_come_from_the_host_are_refused(option: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"cannot see what the host mounts later: .* is {option} \("):
        propagation.check(spec("rbind", option), "container web")


@pytest.mark.parametrize(
    "given",
    [spec("rbind", "rprivate"), spec("ro", "bind"), spec("rshared", kind="tmpfs"), {}, {"mounts": None}],
)
def test_all_else_is_a_guests_own_matter(given: dict[str, Any]) -> None:
    propagation.check(given, "container web")
