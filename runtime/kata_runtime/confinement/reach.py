"""What a guest can still open, connect, mount and run that owns a process of its pod. For tools.

By itself it has what the process's filters, root directory, namespaces and user leave. Besides, it has others
act for it: the broker, by the operations that are allowed after the seal; virtiofsd, by the requests of a
guest; a VMM whose interface is in the shim's hands.

The score of the union counts each system call once, with the weights of `kata_hypervisor.seccomp.score`: one
that the process may make itself as its filters let it through; one that only another makes for it as a call
under a condition, because whoever makes it has checked the arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kata_hypervisor.seccomp.score import ESCAPE, weight
from kata_runtime.confinement.facts import Mount

Verb = Literal["open", "connect", "mount", "run"]
VERBS: tuple[Verb, ...] = ("open", "connect", "mount", "run")

_OPENING = frozenset(["open", "openat", "openat2", "creat", "open_by_handle_at", "open_tree"])
_MOUNTING = frozenset(
    ["mount", "move_mount", "open_tree_attr", "fsmount", "fsopen", "pivot_root", "mount_setattr"]
)
_RUNNING = frozenset(("execve", "execveat"))
_CONNECTING = frozenset(("connect", "sendto", "sendmsg", "bind"))


@dataclass(frozen=True, slots=True)
class Service:
    """What another process does for whoever asks it. calls: those that it makes of it on the host's kernel.

    verb, what: what the asker gets; verb is "" where it gets nothing to open, connect, mount or run.
    """

    calls: tuple[str, ...]
    verb: Verb | Literal[""] = ""
    what: str = ""


_PLACE = ("openat2", "openat", "mkdirat")
_RUN = ("clone", "execve", "setns", "prctl")

# The broker's operations that are allowed after the seal, by name; docs/threat-model.md has their checks.
BROKER_SERVICES: dict[str, Service] = {
    "kill": Service(("kill",)),
    "confinement": Service(("openat",)),
    "end_loading": Service(()),
    "open_spec": Service(("openat2",), "open", "config.json of this sandbox's containers, read-only"),
    "make_directory": Service(_PLACE),
    "mount": Service(
        (*_PLACE, "mount", "open_tree", "move_mount", "mount_setattr"),
        "mount",
        "file systems of the first container's kind, from containerd's snapshots",
    ),
    "bind": Service(
        (*_PLACE, "open_tree", "move_mount", "mount_setattr"),
        "mount",
        "sources that a config.json of this sandbox names",
    ),
    "find_memory": Service((*_PLACE, "openat", "open_tree", "newfstatat")),
    "share": Service(
        (*_PLACE, "openat", "open_tree", "move_mount", "mount_setattr"),
        "mount",
        "sources that a config.json of this sandbox names",
    ),
    "unshare": Service(("openat2", "umount2", "unlinkat")),
    "unmount": Service(("openat2", "umount2")),
    "remove": Service(("openat2", "unlinkat")),
    "open_fifo": Service(("openat2",), "open", "FIFOs of containerd and its clients"),
    "open_log": Service(("openat2", "pipe2"), "open", "logs beside the first container's, to append"),
    "make_image": Service(_RUN, "run", "the program that makes an image of one of its mounts"),
    "open_image": Service(("openat",), "open", "images of root file systems by their hash, read-only"),
    "give_device": Service(
        ("openat", "ioctl", "bpf", "open_tree", "mount_setattr"),
        "open",
        "block devices that its config.json gives, in its guest's machine",
    ),
    "open_device": Service(
        ("openat", "ioctl", "bpf", "open_tree", "mount_setattr"),
        "open",
        "block devices that its config.json gives, in the machine in it",
    ),
    "show_device": Service(
        ("openat", "ioctl", "bpf", "mknodat", "fchownat", "open_tree", "mount_setattr", "move_mount"),
        "open",
        "block devices that its config.json gives, in its guest's machine",
    ),
    "show_image": Service(("openat", "open_tree", "mount_setattr", "move_mount")),
    "hide_image": Service(("umount2", "unlinkat")),
    "connect_guest": Service(("socket", "bind", "connect"), "connect", "its own guest"),
    "connect_events": Service(("socket", "connect"), "connect", "containerd's event socket"),
    "late_interfaces": Service(("openat",)),
    "run_hooks": Service((*_RUN, "sendmsg"), "run", "poststart and poststop hooks of its config.json, once"),
    "probe_kvm": Service(("openat", "ioctl", "mmap")),
    "oom_kills": Service(("openat",)),
    "pin_vcpus": Service(("openat", "mkdirat", "unlinkat")),
    "supervise": Service(()),
    "close": Service(("umount2", "unlinkat", "kill")),
}

SHARED_FILES = Service(
    (
        *("openat", "openat2", "mkdirat", "unlinkat", "renameat2", "linkat", "symlinkat", "mknodat"),
        *("fchmod", "fchmodat", "fchownat", "ftruncate", "fsetxattr", "setxattr", "fremovexattr"),
    ),
    "open",
    "files of its own containers and volumes, by virtiofsd",
)
"""What a virtiofsd does at a guest's request, in the shared directory."""


@dataclass(frozen=True, slots=True)
class Held:
    """A process as far as it counts here. calls: let through whatever their arguments; conditional: for some.

    mounts: what is mounted below its root. capabilities: names of the effective ones.
    """

    role: str
    user: int
    calls: frozenset[str]
    conditional: frozenset[str]
    own_root: bool
    own_network: bool
    landlocked: bool
    capabilities: frozenset[str]
    mounts: Sequence[Mount] = ()

    def may(self, names: Collection[str]) -> bool:
        """Whether at least one of these calls is let through for some arguments."""
        return not (self.calls | self.conditional).isdisjoint(names)


@dataclass(frozen=True, slots=True)
class Union:
    """What a guest reaches that owns a process. alone: the score of that process; score: that of the union.

    escape: the calls of that class which it makes itself, or has made. reach: sentences by verb.
    """

    role: str
    alone: float
    score: float
    calls: int
    escape: tuple[str, ...]
    reach: dict[str, list[str]] = field(default_factory=dict)


def alone(held: Held) -> dict[str, str]:
    """What a process can open, connect, mount and run by itself, a phrase each; "nothing" where it cannot."""
    return {"open": _opens(held), "connect": _connects(held), "mount": _mounts(held), "run": _runs(held)}


def _opens(held: Held) -> str:
    if not held.may(_OPENING) or held.landlocked:
        return "nothing"
    if not held.own_root:
        return f"any file of the host that user {held.user} may"
    writable = sum(mount.writable for mount in held.mounts)
    return "files of its own root, " + (f"{writable} mounts of it writable" if writable else "read-only")


def _connects(held: Held) -> str:
    if not held.may(("socket",)) or not held.may(_CONNECTING):
        return "nothing"
    where = "a network namespace of its own" if held.own_network else "the host's network"
    return where if held.own_root else f"{where}, and sockets in the host's file system"


def _mounts(held: Held) -> str:
    if not held.may(_MOUNTING):
        return "nothing"
    if "sys_admin" in held.capabilities:
        return "anything"
    return "in a user namespace that it makes" if held.may(("unshare", "clone3")) else "nothing"


def _runs(held: Held) -> str:
    if not held.may(_RUNNING):
        return "nothing"
    if not held.own_root:
        return f"any program of the host as user {held.user}"
    if all("noexec" in mount.options for mount in held.mounts):
        return "nothing"
    return "programs of its own root"


def unite(owned: Held, services: Iterable[Service]) -> Union:
    """Unite what a process can do with what others do for it."""
    services = list(services)
    asked = {name for service in services for name in service.calls}
    conditional = (owned.conditional | asked) - owned.calls
    own = {name: weight(name) for name in owned.calls}
    reach = {verb: [phrase] for verb, phrase in alone(owned).items() if phrase != "nothing"}
    for verb, what in dict.fromkeys((service.verb, service.what) for service in services if service.verb):
        reach.setdefault(verb, []).append(what)
    return Union(
        role=owned.role,
        alone=round(sum(own.values()) + sum(weight(name, conditional=True) for name in owned.conditional), 2),
        score=round(sum(own.values()) + sum(weight(name, conditional=True) for name in conditional), 2),
        calls=len(owned.calls | conditional),
        escape=tuple(sorted(ESCAPE & (owned.calls | conditional))),
        reach=reach,
    )
