"""Limits: what the guest is asked for of them, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kata_runtime.container.resources import amend, changes, check, check_update, cpuset_of, merge
from kata_runtime.errors import InvalidRequestError, UnsupportedError


def quota(cpus: float) -> dict[str, Any]:
    return {"cpu": {"quota": int(cpus * 50_000), "period": 50_000}}


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        *(("", set()), ("0", {0}), ("3-5", {3, 4, 5}), ("0,2,4-7", {0, 2, 4, 5, 6, 7})),
        *(("1-2,2-3", {1, 2, 3}), (" 8 , 9", {8, 9})),
    ],
)
def test_cpusets(text: str, cpus: set[int]) -> None:
    assert cpuset_of("create", {"cpu": {"cpus": text}}) == cpus


@pytest.mark.parametrize("text", ["a", " ", "-1", "1-", "5-3", "1,,2", "0-99999999999", "٣"])
def test_what_is_no_cpuset(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no list of CPUs"):
        check("create container web", {"cpu": {"cpus": text}})


@pytest.mark.parametrize(("vcpus", "cpus"), [(1, None), (3, None), (4, "0-2"), (64, "0-2")])
def test_a_cpuset_is_of_the_guests_first_cpus(vcpus: int, cpus: str | None) -> None:
    amended = amend({"cpu": {"cpus": "4,6,9", "mems": "0", "shares": 3}}, vcpus)
    assert amended == {"cpu": {"shares": 3, **({"cpus": cpus} if cpus else {})}}


def test_one_cpu_is_one() -> None:
    assert amend({"cpu": {"cpus": "7"}}, 2) == {"cpu": {"cpus": "0"}}


def test_huge_pages() -> None:
    none = {"hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}
    check("create container web", none)
    assert amend(copy.deepcopy(none), 1) == {}
    some = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}
    with pytest.raises(UnsupportedError, match="huge pages of 2MB, of which the guest has none"):
        check("create container web", some)


def test_an_update_leaves_what_it_does_not_name() -> None:
    before = {"cpu": {"quota": 1, "shares": 2}, "memory": {"limit": 3}, "pids": {"limit": 4}}
    after = {"cpu": {"quota": 5}, "memory": None, "unified": {"x": "y"}}
    assert merge(before, after) == {
        "cpu": {"quota": 5, "shares": 2},
        "memory": None,
        "pids": {"limit": 4},
        "unified": {"x": "y"},
    }
    assert before["cpu"] == {"quota": 1, "shares": 2}


def test_an_update_is_what_differs_of_what_a_creation_alone_sets() -> None:
    before = {"devices": [{"allow": False}], "unified": {"x": "y"}, "pids": {"limit": 4}}
    assert changes(before, before) == {"pids": {"limit": 4}}
    other = {"devices": [], "unified": {"x": "z"}}
    assert changes(before, other) == other


def test_an_update_of_cpus_fits_into_the_machine_or_is_what_was() -> None:
    check_update("update container web", {}, quota(2), 2)
    check_update("update container web", quota(8), quota(8), 2)
    check_update("update container web", {}, {"cpu": {"quota": -1}}, 1)
    static = "with static_sandbox_resource_mgmt"
    sentences = {
        static: f"than its machine has, 2; the machine of a pod keeps its size {static}, so create the pod",
        "": "than its machine may have, 2: by default_maxvcpus",
    }
    for before in ({}, quota(2)):
        for keeps, sentence in sentences.items():
            with pytest.raises(UnsupportedError, match=f"2.5 CPUs are more {sentence}"):
                check_update("update container web", before, quota(2.5), 2, keeps)
    with pytest.raises(UnsupportedError, match="when a container is created only"):
        check_update("update container web", {}, {"unified": {"memory.high": "1"}}, 2)


@pytest.mark.parametrize("limit", [1, (1 << 20) - 1])
def test_less_memory_than_any_program_needs(limit: int) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"a memory limit of {limit} bytes .*; give it 1048576 or more"
    ):
        check("create container web", {"memory": {"limit": limit}})
    for enough in (None, 0, -1, 1 << 20):
        check("create container web", {"memory": {"limit": enough}})
