"""Limits of a container: what of them the guest is asked for, and what is refused as it cannot hold there.

A limit is in force in the guest's own cgroups, or refused; what names devices or classes of the host is left
out, see `guest_spec.left_out`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_runtime import cpu_list
from kata_runtime.container import devices
from kata_runtime.errors import InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from kata_runtime.block_nodes import Numbers
    from kata_runtime.container.bundle import JsonObject

OF_HOST = ("blockIO", "network", "rdma")
"""Parts of linux.resources that name devices or classes of the host."""

LEAST_MEMORY = 1 << 20
"""Bytes. With a quarter of them a guest reads a program's pages again and again; with these busybox runs."""

_OF_CREATION = frozenset({"devices", "unified"})
_PERIOD = 100_000
"""Microseconds: of a quota that comes without one, as the kernel has it."""


def check(action: str, resources: JsonObject, plugged: Collection[Numbers] = ()) -> None:
    """See that limits can hold in a guest. action: for the sentence, "create container web".

    plugged: numbers of the host's block devices that the container gets as disks.

    Raises:
        UnsupportedError: they cannot.
        InvalidRequestError: a cpuset is none.
    """
    devices.check_rules(action, resources, plugged)
    memory = (resources.get("memory") or {}).get("limit") or 0
    if 0 < memory < LEAST_MEMORY:
        raise UnsupportedError(
            f"cannot {action}: with a memory limit of {memory} bytes no program gets to its first output; "
            f"give it {LEAST_MEMORY} or more"
        )
    for limit in resources.get("hugepageLimits") or ():
        if limit.get("limit"):
            raise UnsupportedError(
                f"cannot {action}: it is to have huge pages of {limit.get('pageSize')}, of which the guest "
                "has none; leave out the limit, or use transparent huge pages"
            )
    cpuset_of(action, resources)


def check_update(action: str, before: JsonObject, after: JsonObject, vcpus: int, keeps: str = "") -> None:
    """See that the guest can follow new limits.

    before: those in force. vcpus: the most that the machine may have. keeps: with what it keeps its size, ""
    where it grows.

    Raises:
        UnsupportedError: it cannot; nothing was changed.
    """
    check(action, after)
    if after.get("unified"):
        raise UnsupportedError(
            f"cannot {action}: keys of linux.resources.unified are set when a container is created only"
        )
    asked = cpus_of(after)
    if asked > max(vcpus, cpus_of(before)):
        raise UnsupportedError(
            f"cannot {action}: {asked:g} CPUs are more than its machine has, {vcpus}; the machine of a pod "
            f"keeps its size {keeps}, so create the pod with this limit"
            if keeps
            else f"cannot {action}: {asked:g} CPUs are more than its machine may have, {vcpus}: by "
            "default_maxvcpus in the hypervisor's table, and by what this host has"
        )


def changes(before: JsonObject, after: JsonObject) -> JsonObject:
    """Return an update without the parts that are set at creation only, where it repeats what is in force.

    The CRI plugin of containerd sends all of linux.resources, though its client has named one limit.
    """
    return {
        part: values
        for part, values in after.items()
        if part not in _OF_CREATION or values != before.get(part)
    }


def merge(before: JsonObject, after: JsonObject) -> JsonObject:
    """Return the limits in force after an update: what that does not name stays as it was."""
    merged = dict(before)
    for part, values in after.items():
        both = isinstance(values, dict) and isinstance(before.get(part), dict)
        merged[part] = {**before[part], **values} if both else values
    return merged


def cpus_of(resources: JsonObject) -> float:
    """How many CPUs a quota is worth; 0 without one."""
    cpu = resources.get("cpu") or {}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or _PERIOD
    return quota / period if quota > 0 else 0.0


def amend(resources: JsonObject, vcpus: int, plugged: Collection[Numbers] = ()) -> JsonObject:
    """Take out, in place, what names devices and sets of the host. vcpus: the most that the machine may have.

    plugged: see `check`.

    A cpuset names CPUs of the host. The container gets as many of the guest's, which are numbered from zero.
    """
    for key in (*OF_HOST, "hugepageLimits"):
        resources.pop(key, None)
    if resources.get("devices"):
        resources["devices"] = devices.rules_of_guest(resources["devices"], plugged)
    cpu = resources.get("cpu") or {}
    cpu.pop("mems", None)
    count = len(cpuset_of("set", resources))
    if cpu.pop("cpus", None) and count < vcpus:
        cpu["cpus"] = f"0-{count - 1}" if count > 1 else "0"
    return resources


def cpuset_of(action: str, resources: JsonObject) -> frozenset[int]:
    """The CPUs of the host that a cpuset names; none without one. Raises InvalidRequestError: it is none."""
    try:
        return cpu_list.parse((resources.get("cpu") or {}).get("cpus") or "")
    except ValueError as error:
        raise InvalidRequestError(f"cannot {action}: the cpuset {error}") from None
