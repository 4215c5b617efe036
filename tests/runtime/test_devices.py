"""Devices of the host in a specification: which of them the guest may be asked for."""

from __future__ import annotations

from typing import Any

import pytest

from kata_runtime.container.devices import check, check_rules
from kata_runtime.errors import UnsupportedError

ALL = {"allow": True, "access": "rwm"}


def node(path: str, kind: str = "c", major: int = 0, minor: int = 0) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor}


def spec(*nodes: dict[str, Any], rules: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"linux": {"devices": list(nodes), "resources": {"devices": list(rules)}}}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"linux": None},
        {"linux": {"devices": None, "resources": None}},
        spec(node("/dev/anything", "c", 1, 3), node("/dev/fuse", "u", 10, 229), node("/pipe", "p")),
        spec(node("/dev/net/tun", "c", 10, 200), rules=(ALL, {"allow": True, "type": "b"})),
    ],
)
def test_what_every_linux_has_is_given(given: dict[str, Any]) -> None:
    check("web", given)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (node("/dev/null", "c", 1, 4), "/dev/null is a character device of the host, and its number 1:4 "),
        (node("/dev/ttyS0", "c", 4, 64), "/dev/ttyS0 is a character device of the host"),
    ],
)
def test_what_the_guest_has_not_or_otherwise_is_refused_by_name(found: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=r"^cannot create container web: ") as error:
        check("web", spec(node("/dev/fuse", "c", 10, 229), found))
    assert said in str(error.value)
    assert "such as /dev/fuse and /dev/net/tun" in str(error.value)


def test_a_privileged_container_with_the_hosts_devices_is_told_what_to_set() -> None:
    nodes = (node("/dev/sda", "b", 8), node("/dev/ttyS0", "c", 4, 64), node("/dev/full", "c", 1, 7))
    with pytest.raises(UnsupportedError) as error:
        check("web", spec(*nodes, rules=(ALL,)))
    assert "/dev/ttyS0 is a character device" in str(error.value)
    assert "set privileged_without_host_devices = true" in str(error.value)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"type": "b", "major": 254, "minor": 0}, "b 254:0"),
        ({"type": "b", "major": 8}, r"b 8:\*"),
        ({"type": "c", "major": 10}, r"c 10:\*"),
        ({"type": "c", "minor": 3}, r"c \*:3"),
        ({"major": 1, "minor": 3}, "a 1:3"),
    ],
)
def test_a_rule_that_allows_a_number_of_the_hosts_is_refused(rule: dict[str, Any], name: str) -> None:
    resources = {"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "access": "rwm", **rule}]}
    with pytest.raises(
        UnsupportedError, match=f"^cannot update container web: it is allowed the device {name} "
    ):
        check_rules("update container web", resources)
