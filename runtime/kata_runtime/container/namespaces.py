"""Namespaces that a container is to be in: of the host, of which a guest has none, or of another container.

A container without an entry for a kind is in the host's (config-linux.md of the OCI runtime specification).
That of the network has a module of its own, `kata_runtime.resource.network`. A guest's container without one
would be in that of the guest's agent.
"""

from __future__ import annotations

from kata_runtime.container.bundle import JsonObject
from kata_runtime.errors import UnsupportedError

# By the type of an entry: what the host's would show, and how people ask for it.
_HOSTS = {
    "pid": ("processes", "hostPID, --pid=host"),
    "ipc": ("shared memory and message queues", "hostIPC, --ipc=host"),
    "uts": ("host name", "--uts=host"),
}


def refuse(spec: JsonObject, what: str, *, first: bool) -> None:
    """Refuse a container that is to be in a namespace of the host's. Raises UnsupportedError.

    what: the container, for the message. first: whether it makes the pod: then nobody is there whose
    namespaces it could share.
    """
    entries = [
        entry for entry in (spec.get("linux") or {}).get("namespaces") or () if isinstance(entry, dict)
    ]
    paths = {entry.get("type"): entry.get("path") for entry in entries}
    for kind, (shows, asked_by) in _HOSTS.items():
        if kind == "uts" and "network" not in paths:
            continue  # containerd gives no name of its own to a pod in the host's network, which is refused
        if kind not in paths:
            raise UnsupportedError(
                f"{what} in a virtual machine cannot use the host's {shows} (its specification has no {kind} "
                f"namespace: {asked_by}): remove that, or run it with a runtime class without machines"
            )
        if first and paths[kind]:
            raise UnsupportedError(
                f"{what} in a virtual machine cannot join the {kind} namespace {paths[kind]} of the host, or "
                "of another pod: give it one of its own, or run it with a runtime class without machines"
            )


def shares_processes(spec: JsonObject) -> bool:
    """Whether a container is to be in the process namespace of its pod, or of another container of it."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    return any(entry.get("type") == "pid" and entry.get("path") for entry in namespaces)
