"""What the broker gives up of itself when the sandbox is sealed: capabilities, dumps, imports, calls.

Its features are those of its filter (`kata_hypervisor/seccomp/policies/broker-x86_64.toml`): nothing beyond
"base" unless the pod needs a program later. Programs that it starts then are held by the same filter, and
have no other capabilities: there are none left to gain.

Landlock is not used here: a process under it cannot mount (landlock(7)), which is what the broker is for.
"""

from __future__ import annotations

import importlib
import os
import resource

from kata_hypervisor.seccomp import confinement
from kata_runtime import closed_imports, syscalls
from kata_runtime.broker import descriptors
from kata_runtime.broker.errors import RequestFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection


class Capability:
    """One that is kept. number: as in linux/capability.h. features: which need it, none for every broker."""

    __slots__ = ("features", "name", "number", "reason")

    def __init__(self, name: str, number: int, reason: str, *features: str) -> None:
        self.name = name
        self.number = number
        self.reason = reason
        self.features = features


CAPABILITIES = (
    Capability("CAP_DAC_OVERRIDE", 1, "FIFOs, logs and sockets that belong to a client's or a pod's user"),
    Capability("CAP_KILL", 5, "children have the pod's user"),
    Capability("CAP_SYS_CHROOT", 18, "setns(2) into a mount namespace, where sources of mounts are"),
    Capability("CAP_SYS_ADMIN", 21, "mounts"),
    # An overlay copies a file up, when it is first written, with the capabilities of who has mounted it.
    Capability("CAP_CHOWN", 0, "the copy of a file of an image keeps its owner"),
    Capability("CAP_FOWNER", 3, "it keeps the modes and times of files that others own"),
    Capability("CAP_FSETID", 4, "it keeps the set-group-id bit of files that others own"),
    Capability("CAP_SETFCAP", 31, "it keeps the capabilities of programs"),
    Capability("CAP_SYS_PTRACE", 19, "the paths that a child opens while it loads", "loading"),
    Capability(
        "CAP_MKNOD", 27, "nodes in images, which nobody opens; one that a VMM opens", "images", "nodes"
    ),
    Capability("CAP_NET_BIND_SERVICE", 10, "the guest's agent takes calls from reserved ports only", "vsock"),
    Capability("CAP_NET_ADMIN", 12, "what was attached to the pod's network is taken away", "network"),
)
"""All that a sealed broker, and the programs that it starts, can have."""

LATER: dict[str, tuple[str, ...]] = {
    "": (
        "kata_hypervisor.seccomp.bpf",
        "kata_hypervisor.seccomp.effectiveness",
        "kata_hypervisor.seccomp.named_refusal",
    ),
    "kvm": ("kata_hypervisor.kvm.probe",),
    "network": ("kata_runtime.network.asking",),
}
"""What is imported where it is needed, which may be after the seal; by feature, "" for every broker."""


def kept(features: Collection[str]) -> int:
    """The capabilities for these features, as a set of bits."""
    return sum(1 << one.number for one in CAPABILITIES if not one.features or {*one.features} & {*features})


def confine(features: Collection[str], code: bytes) -> None:
    """Give up what the features do not need and put on the filter, for ever; verify it in /proc.

    Raises:
        OSError, RequestFailedError: something could not be given up, or the kernel reports that it was not.
    """
    from kata_hypervisor.errors import SealError
    from kata_hypervisor.seccomp import filter as kernel

    for name in (name for feature in ("", *features) for name in LATER.get(feature, ())):
        importlib.import_module(name)
    if (unlisted := descriptors.find_unlisted(os.getpid(), descriptors.OF_BROKER)) is not None:
        raise RequestFailedError(f"the broker holds what it must not, so the pod is not started: {unlisted}")
    before = confinement.inherited_filters()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscalls.forbid_dumps()
    syscalls.keep_capabilities(kept(features))
    closed_imports.close()
    try:
        kernel.install(code, all_threads=True, listener=False, log=True)
    except SealError as error:
        raise RequestFailedError(f"the broker cannot be sealed: {error}") from None
    threads = confinement.read_threads(os.getpid())
    breach = confinement.find_breach(threads, True, before, process="the broker", required_by="its seal")
    breach = breach or find_excess(_read_status(), features)
    if breach is not None:
        raise RequestFailedError(
            f"the broker is not confined as it must be, so the pod is not started: {breach}"
        )


def find_excess(status: dict[str, str], features: Collection[str]) -> str | None:
    """Say what a process has that a sealed broker with these features may not have.

    status: the fields of /proc/PID/status (proc_pid_status(5)).
    """
    allowed = {"CapInh": 0, "CapAmb": 0, **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), kept(features))}
    for name, may in allowed.items():
        if int(status[name], 16) & ~may:
            return f"the kernel reports {name} {status[name]}, and the features need no more than {may:016x}"
    if status["NoNewPrivs"] != "1":
        return f"the kernel reports NoNewPrivs {status['NoNewPrivs']}, and it must be 1"
    return None


def _read_status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in fields}
