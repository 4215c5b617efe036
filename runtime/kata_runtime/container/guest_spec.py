"""From the host's OCI specification to the guest's: what the VM already isolates is taken out, and paths
of the host become paths of the guest.

Source of the amendments: Kata's agent protocol, in which the guest sees its own kernel and one network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kata_runtime.container.bundle import JsonObject

GUEST_SHARED = "/run/kata-containers/shared/containers"
GUEST_SHM = "/run/kata-containers/sandbox/shm"

# Mounts of these types are made by the guest itself, from its own kernel.
_GUEST_TYPES = frozenset(
    {"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2", "devtmpfs", "bpf"}
)
# The VM is the boundary of these: the guest has one network, one clock, one host-side cgroup.
_DROPPED_NAMESPACES = frozenset({"network", "time"})


@dataclass(frozen=True, slots=True)
class Volume:
    """A mount whose content comes from the host.

    index: its position in the specification's mounts. source: absolute path on the host.
    """

    index: int
    source: str
    destination: str
    readonly: bool
    recursive: bool


def rootfs_of(container_id: str) -> str:
    """Where the guest sees a container's root file system."""
    return f"{GUEST_SHARED}/{container_id}/rootfs"


def is_bind(mount: JsonObject) -> bool:
    """Whether a mount of the specification is a bind mount of a host path."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def volumes_of(spec: JsonObject) -> list[Volume]:
    """The mounts that must be shared from the host.

    A bind mount of /dev/shm is the pod's shared memory: the guest has its own, see `amend`.
    """
    found = []
    for index, mount in enumerate(spec.get("mounts") or ()):
        if not is_bind(mount) or mount["destination"] == "/dev/shm":
            continue
        options = mount.get("options") or ()
        found.append(
            Volume(
                index,
                str(mount.get("source") or ""),
                mount["destination"],
                readonly="ro" in options,
                recursive="rbind" in options or "bind" not in options,
            )
        )
    return found


def amend(
    spec: JsonObject, container_id: str, guest_sources: Mapping[int, str], *, disable_guest_seccomp: bool
) -> JsonObject:
    """The specification for the guest's runtime; the argument is not changed.

    guest_sources: guest path of each shared volume, by its index in mounts.
    """
    guest = copy.deepcopy(spec)
    guest["root"]["path"] = rootfs_of(container_id)
    guest["mounts"] = [
        _mount(index, mount, guest_sources) for index, mount in enumerate(guest.get("mounts") or ())
    ]
    _keep_guest_hooks(guest)
    linux = guest["linux"] = guest.get("linux") or {}
    linux["namespaces"] = [
        {"type": namespace["type"]}
        for namespace in linux.get("namespaces") or ()
        if namespace.get("type") not in _DROPPED_NAMESPACES
    ]
    if disable_guest_seccomp:
        linux.pop("seccomp", None)
    # Labels and profiles of the host's security modules mean nothing to the guest's kernel.
    linux.pop("mountLabel", None)
    linux.pop("intelRdt", None)
    amend_process(guest["process"])
    _clear_host_resources(linux)
    return guest


def amend_process(process: JsonObject) -> JsonObject:
    """Take the host's security labels out of a process, in place; also for an exec."""
    for key in ("apparmorProfile", "selinuxLabel"):
        process.pop(key, None)
    return process


def _mount(index: int, mount: JsonObject, guest_sources: Mapping[int, str]) -> JsonObject:
    if index in guest_sources:
        return mount | {"type": "bind", "source": guest_sources[index]}
    if is_bind(mount) and mount["destination"] == "/dev/shm":
        return mount | {"type": "bind", "source": GUEST_SHM, "options": ["rbind", "rw"]}
    return mount


def _keep_guest_hooks(guest: JsonObject) -> None:
    """Hooks of the host are run by the host; startContainer runs inside the container, so in the guest."""
    hooks: dict[str, Any] = guest.pop("hooks", None) or {}
    if hooks.get("startContainer"):
        guest["hooks"] = {"startContainer": hooks["startContainer"]}


def _clear_host_resources(linux: JsonObject) -> None:
    """Limits that name devices, sets or weights of the host."""
    resources = linux.get("resources")
    if not resources:
        return
    for key in ("blockIO", "network", "rdma", "hugepageLimits"):
        resources.pop(key, None)
    cpu = resources.get("cpu")
    if cpu:
        # A cpuset names CPUs of the host: the guest's are numbered from zero.
        cpu.pop("cpus", None)
        cpu.pop("mems", None)
