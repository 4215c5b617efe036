"""CPUs of the host that a pod's containers name, and its machine's virtual CPUs on them.

With enable_vcpus_pinning each virtual CPU is kept on one CPU as long as the containers' cpusets come to as
many as the machine has; else each runs on any CPU of the pod's cgroup. A cpuset is known when its container
comes, or is updated: a kubelet with a static CPU manager names the CPUs then.
Source: Kata's docs/design/vcpu-threads-pinning.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import anyio

from kata_hypervisor.concurrency import finish
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container import resources
from kata_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject

_log = logging.getLogger(__name__)


class HostCpus:
    """The CPUs of one pod. pinning: whether virtual CPUs are kept on them. vcpus: how many there are now."""

    def __init__(self, broker: Broker, vcpus: Callable[[], int], *, pinning: bool) -> None:
        self._broker = broker
        self._vcpus = vcpus
        self._pinning = pinning
        self._named: dict[str, frozenset[int]] = {}
        # What is in force; None where that is unknown, after a failure.
        self._pinned: list[int] | None = []
        self._turn = anyio.Lock()

    @contextlib.asynccontextmanager
    async def named_by(self, action: str, container_id: str, limits: JsonObject) -> AsyncIterator[None]:
        """Take a container's cpuset in; its limits are set within, and where that fails it is as before.

        action: for sentences, "create container web". limits: linux.resources, all that will be in force.

        Raises:
            UnsupportedError: the virtual CPUs cannot be kept on these CPUs.
        """
        before = self._named.get(container_id)
        self._name(container_id, resources.cpuset_of(action, limits))
        try:
            async with self._turn:
                await self._settle()
            yield
        except BaseException as error:
            self._name(container_id, before)
            await finish(self.settle())
            if isinstance(error, RequestFailedError):
                raise UnsupportedError(f"cannot {action}: {error}") from error
            raise

    async def leave(self, container_id: str) -> None:
        """A container is gone, and names no CPUs any more."""
        self._name(container_id, None)
        await self.settle()

    async def settle(self) -> None:
        """Follow a machine that has another number of virtual CPUs, or containers that went."""
        async with self._turn:
            try:
                await self._settle()
            except RequestFailedError as error:
                _log.warning("the virtual CPUs are not kept on CPUs of the host: %s", error)

    def _name(self, container_id: str, cpus: frozenset[int] | None) -> None:
        if cpus:
            self._named[container_id] = cpus
        else:
            self._named.pop(container_id, None)

    async def _settle(self) -> None:
        cpus = sorted(frozenset[int]().union(*self._named.values()))
        vcpus = self._vcpus()
        wanted = cpus if len(cpus) == vcpus else []
        if not self._pinning or wanted == self._pinned:
            return
        self._pinned = None
        await self._broker.pin_vcpus(wanted)
        self._pinned = wanted
        if wanted:
            _log.info("virtual CPUs 0 to %d are kept on the host's CPUs %s, one each", vcpus - 1, wanted)
        else:
            _log.info(
                "%d virtual CPUs run on any CPU of the pod's cgroup: its containers name %d",
                vcpus,
                len(cpus),
            )
