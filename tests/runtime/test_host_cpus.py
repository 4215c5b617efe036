"""Virtual CPUs are kept on the CPUs that containers name while both are as many, and on none otherwise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.pod.host_cpus import HostCpus

pytestmark = pytest.mark.anyio


class Broker:
    """Notes the CPUs that it is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.failure: Exception | None = None

    async def pin_vcpus(self, cpus: Sequence[int]) -> None:
        self.asked.append(list(cpus))
        if self.failure is not None:
            raise self.failure


class Pod:
    """The CPUs of a pod with a machine of so many virtual CPUs."""

    def __init__(self, vcpus: int, *, pinning: bool = True) -> None:
        self.vcpus = vcpus
        self.broker = Broker()
        broker: Any = self.broker
        self.cpus = HostCpus(broker, lambda: self.vcpus, pinning=pinning)

    async def name(self, container: str, cpus: str | None, within: Exception | None = None) -> None:
        limits = {"cpu": {"cpus": cpus}} if cpus is not None else {}
        async with self.cpus.named_by(f"create container {container}", container, limits):
            if within is not None:
                raise within

    @property
    def asked(self) -> list[list[int]]:
        return self.broker.asked


async def test_as_long_as_containers_name_as_many_as_there_are() -> None:
    pod = Pod(3)
    await pod.name("pause", None)
    await pod.name("one", "8,2")
    assert pod.asked == []
    await pod.name("two", "5")
    assert pod.asked == [[2, 5, 8]]
    await pod.name("two", "5")  # an update that changes nothing
    assert pod.asked == [[2, 5, 8]]
    await pod.name("three", "2,5")
    assert pod.asked == [[2, 5, 8]]
    await pod.name("three", "6")
    assert pod.asked == [[2, 5, 8], []]
    await pod.cpus.leave("two")
    assert pod.asked == [[2, 5, 8], [], [2, 6, 8]]
    await pod.name("three", None)
    assert pod.asked[3:] == [[]]


async def test_a_machine_of_another_size_is_followed() -> None:
    pod = Pod(2)
    await pod.name("one", "0-1")
    pod.vcpus = 3
    await pod.cpus.settle()
    pod.vcpus = 2
    await pod.cpus.settle()
    assert pod.asked == [[0, 1], [], [0, 1]]


async def test_nothing_is_asked_for_where_it_is_not_configured() -> None:
    pod = Pod(1, pinning=False)
    await pod.name("one", "0")
    await pod.cpus.leave("one")
    assert pod.asked == []


async def test_a_container_that_does_not_come_names_none() -> None:
    pod = Pod(1)
    await pod.name("one", "4")
    with pytest.raises(RuntimeError, match="the guest refused"):
        await pod.name("one", "5", RuntimeError("the guest refused"))
    assert pod.asked == [[4], [5], [4]]
    with pytest.raises(RuntimeError):
        await pod.name("two", "5", RuntimeError("the guest refused"))
    assert pod.asked[3:] == [[], [4]]


async def test_what_the_host_cannot_do_is_refused_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pod = Pod(1)
    pod.broker.failure = RequestFailedError("the cgroup of the pod does not have the CPU 9 of the host")
    with pytest.raises(UnsupportedError) as error:
        await pod.name("one", "9")
    assert str(error.value) == (
        "cannot create container one: the cgroup of the pod does not have the CPU 9 of the host"
    )
    assert pod.asked == [[9], []]  # and what is left is as before, or said not to be
    assert "the virtual CPUs are not kept on CPUs of the host: the cgroup" in caplog.text
    pod.broker.failure = None
    await pod.name("one", "9")
    assert pod.asked[2:] == [[9]]
    assert "virtual CPUs 0 to 0 are kept on the host's CPUs [9], one each" in caplog.text


async def test_a_cpuset_that_is_none_is_refused_and_changes_nothing() -> None:
    pod = Pod(1)
    await pod.name("one", "4")
    with pytest.raises(InvalidRequestError, match="cannot create container one: the cpuset 'x' is no list"):
        await pod.name("one", "x")
    await pod.name("two", None)
    assert pod.asked == [[4]]
