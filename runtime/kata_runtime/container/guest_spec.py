"""From the host's OCI specification to the guest's: what the VM already isolates is taken out, and paths
of the host become paths of the guest.

Source of the amendments: Kata's agent protocol, in which the guest sees its own kernel and one network.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from kata_agent import oci
from kata_agent.constants import MOUNTS_ANNOTATION, PID_ANNOTATION
from kata_runtime.block_nodes import BLOCK, BlockNode
from kata_runtime.container import devices, resources
from kata_runtime.container.bundle import JsonObject

GUEST_SHARED = "/run/kata-containers/shared/containers"
GUEST_MEMORY = "/run/kata-containers/sandbox/memory"
"""What is mounted below it is the pod's: it outlives the container for which it came."""

# Mounts of these types are made by the guest itself, from its own kernel.
_GUEST_TYPES = frozenset(
    {"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2", "devtmpfs", "bpf"}
)
# Columns or rows: struct winsize has 16 bits for each (ioctl_tty(2)).
_LARGEST_TERMINAL = 0xFFFF
# Of the host's security modules, which mean nothing to the guest's kernel.
_LABELS = ("apparmorProfile", "selinuxLabel")
# The VM is the boundary of these: the guest has one network, one clock, one host-side cgroup.
_DROPPED_NAMESPACES = frozenset({"network", "time"})


GUEST_WATCHED = "/run/kata-containers/watched"

RESOLV_CONF = "/etc/resolv.conf"
# The guest's agent writes the file when it makes the sandbox; it is memory of the pod's own guest.
_OF_NAME_SERVERS = {
    "destination": RESOLV_CONF,
    "type": "bind",
    "source": "/run/resolv.conf",
    "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
}


class PodSettings(NamedTuple):
    """What a pod without a container of its own says for all of its containers.

    sysctls: by name. name_servers: lines of resolv.conf.
    """

    sysctls: Mapping[str, str] = MappingProxyType({})
    name_servers: tuple[str, ...] = ()


NO_SETTINGS = PodSettings()

# Directories of a pod in which a kubelet has its emptyDirs, and parts of them.
_OF_KUBELETS = ("/kubernetes.io~empty-dir/", "/volume-subpaths/")
_UPDATED = re.compile(r"/kubernetes\.io~(configmap|secret|projected|downward-api)/[^/]+/?$")


@dataclass(frozen=True, slots=True)
class Volume:
    """A mount whose content comes from the host.

    index: its position in the specification's mounts. source: absolute path on the host. recursive: whether
    what is mounted below the source comes along. readonly_below: whether that is read-only too.
    """

    index: int
    source: str
    destination: str
    readonly: bool
    recursive: bool
    readonly_below: bool = False

    @property
    def updated(self) -> bool:
        """Whether a kubelet brings it up to date: a configMap, secret, projected or downwardAPI volume."""
        return self.readonly and _UPDATED.search(self.source) is not None


class GuestSource(NamedTuple):
    """Where the guest sees a volume. readonly: whether the host lets nobody write by that name.

    below: the paths in it that are mounts of their own. flags: nosuid, nodev and noexec of the host's mount,
    as a bind mount there would have them.
    """

    path: str
    readonly: bool = False
    below: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def rootfs_of(container_id: str) -> str:
    """Where the guest sees a container's root file system."""
    return f"{GUEST_SHARED}/{container_id}/rootfs"


def is_bind(mount: JsonObject) -> bool:
    """Whether a mount of the specification is a bind mount of a host path."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def volumes_of(spec: JsonObject) -> list[Volume]:
    """The mounts whose content is the host's: not of a device such as /dev/kmsg, which is the guest's."""
    found = []
    for index, mount in enumerate(spec.get("mounts") or ()):
        if not is_bind(mount) or _is_own_device(mount):
            continue
        options = mount.get("options") or ()
        found.append(
            Volume(
                index,
                str(mount.get("source") or ""),
                mount["destination"],
                readonly="ro" in options or "rro" in options,
                recursive="rbind" in options or "bind" not in options,
                readonly_below="rro" in options,
            )
        )
    return found


def memory_candidates(spec: JsonObject) -> list[Volume]:
    """The volumes that may be memory of the pod, by their names: see `resource/memory.py`."""
    return [
        volume
        for volume in volumes_of(spec)
        if volume.destination == "/dev/shm" or any(name in volume.source for name in _OF_KUBELETS)
    ]


def amend(
    spec: JsonObject,
    container_id: str,
    guest_sources: Mapping[int, GuestSource],
    *,
    disable_guest_seccomp: bool,
    vcpus: int = 1,
    processes_of: str = "",
    settings: PodSettings = NO_SETTINGS,
    nodes: Sequence[BlockNode] = (),
) -> JsonObject:
    """The specification for the guest's runtime; the argument is not changed.

    guest_sources: of each shared volume, by its index in mounts. vcpus: the most of the machine.
    processes_of: the container whose process namespace it joins. settings: the pod's, for a specification
    that does not say otherwise. nodes: its block devices; what stands for one has the host's number still,
    which the guest's agent replaces.
    """
    guest = copy.deepcopy(spec)
    guest["root"]["path"] = rootfs_of(container_id)
    plugged = {node.mount for node in nodes}
    guest["mounts"] = [
        _mount(index, mount, guest_sources)
        for index, mount in enumerate(guest.get("mounts") or ())
        if index not in plugged
    ]
    _keep_guest_hooks(guest)
    linux = guest["linux"] = guest.get("linux") or {}
    linux["namespaces"] = [
        {"type": namespace["type"]}
        for namespace in linux.get("namespaces") or ()
        if namespace.get("type") not in _DROPPED_NAMESPACES
    ]
    annotations = guest["annotations"] = guest.get("annotations") or {}
    annotations.pop(PID_ANNOTATION, None)  # the runtime's alone to set
    if processes_of:
        annotations[PID_ANNOTATION] = processes_of
    annotations.pop(MOUNTS_ANNOTATION, None)
    below = [f"{source.path}/{path}" for source in guest_sources.values() for path in source.below]
    if below:
        annotations[MOUNTS_ANNOTATION] = json.dumps(below)
    if settings.sysctls:
        linux["sysctl"] = {**settings.sysctls, **(linux.get("sysctl") or {})}
    if settings.name_servers and RESOLV_CONF not in [mount.get("destination") for mount in guest["mounts"]]:
        guest["mounts"].append(dict(_OF_NAME_SERVERS))
    if disable_guest_seccomp:
        linux.pop("seccomp", None)
    # Labels and profiles of the host's security modules mean nothing to the guest's kernel.
    linux.pop("mountLabel", None)
    linux.pop("intelRdt", None)
    amend_process(guest["process"])
    _add_nodes(linux, [node for node in nodes if node.mount is not None])
    if linux.get("resources"):
        resources.amend(linux["resources"], vcpus, {node.numbers for node in nodes})
    return guest


def _add_nodes(linux: JsonObject, nodes: Sequence[BlockNode]) -> None:
    """Make devices of mounts that name block devices: a node in the container, and the leave to open it."""
    for node in nodes:
        major, minor = node.numbers
        place = {"path": node.path, "type": BLOCK, "major": major, "minor": minor}
        owner = {"fileMode": node.mode, "uid": node.user, "gid": node.group}
        linux["devices"] = [*(linux.get("devices") or ()), place | owner]
        rule = {"allow": True, "type": BLOCK, "major": major, "minor": minor}
        limits = linux["resources"] = linux.get("resources") or {}
        access = "rwm" if node.write else "rm"
        limits["devices"] = [*(limits.get("devices") or ()), rule | {"access": access}]


def left_out(spec: JsonObject) -> list[str]:
    """What of a specification is not in force in the guest, and not refused: by its path, with its value."""
    process, linux = spec.get("process") or {}, spec.get("linux") or {}
    limits = linux.get("resources") or {}
    found = {
        **{f"process.{key}": process.get(key) for key in _LABELS},
        **{f"linux.{key}": linux.get(key) for key in ("mountLabel", "intelRdt")},
        **{f"linux.resources.{key}": limits.get(key) for key in resources.OF_HOST},
    }
    told = {path: value for path, value in found.items() if value and value != "unconfined"}
    lost = [path for path in oci.lost_fields(spec) if path not in told]
    return [*(f"{path} {json.dumps(value)[:100]}" for path, value in told.items()), *lost]


def amend_process(process: JsonObject, size: tuple[int, int] | None = None) -> JsonObject:
    """Take the host's security labels out of a process, in place; also for an exec.

    size: columns and rows that its terminal has from the start on; None: what the specification says.
    """
    for key in _LABELS:
        process.pop(key, None)
    if size is not None:
        # As the agent does for a resize; the guest's runtime takes the lower 16 bits of what is larger.
        columns, rows = (min(length, _LARGEST_TERMINAL) for length in size)
        process["consoleSize"] = {"width": columns, "height": rows}
    return process


def _mount(index: int, mount: JsonObject, guest_sources: Mapping[int, GuestSource]) -> JsonObject:
    if (shared := guest_sources.get(index)) is not None:
        options = [*(mount.get("options") or ()), *shared.flags]
        if shared.readonly:
            # Another container may write to it by another mount of the host, and so may its file system.
            options = [option for option in options if option != "rw"] + ["ro"]
        return mount | {"type": "bind", "source": shared.path, "options": options}
    return mount


def _is_own_device(mount: JsonObject) -> bool:
    """Whether a bind mount is of a device of which the guest has its own, at the same path."""
    return is_bind(mount) and devices.own_node(str(mount.get("source")))


def _keep_guest_hooks(guest: JsonObject) -> None:
    """Hooks of the host are run by the host; startContainer runs inside the container, so in the guest."""
    hooks: dict[str, Any] = guest.pop("hooks", None) or {}
    if hooks.get("startContainer"):
        guest["hooks"] = {"startContainer": hooks["startContainer"]}
