"""Mounts that are to pass between the host and a container while it runs: a guest has mounts of its own."""

from __future__ import annotations

from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.guest_spec import is_bind
from kata_runtime.errors import UnsupportedError

# Option -> what it asks for, and how people ask for it.
_BOTH_WAYS = ("make mounts on the host", "Bidirectional")
_FROM_HOST = ("see what the host mounts later", "HostToContainer")
_PASSED = {"shared": _BOTH_WAYS, "rshared": _BOTH_WAYS, "slave": _FROM_HOST, "rslave": _FROM_HOST}


def check(spec: JsonObject, what: str) -> None:
    """See that no volume is to pass mounts while the container runs. what: the container, for the message.

    Raises:
        UnsupportedError: one is; what is mounted on one side is mounted in its kernel, and nowhere else.
    """
    for mount in filter(is_bind, spec.get("mounts") or ()):
        for option in mount.get("options") or ():
            if option in _PASSED:
                aim, asked_by = _PASSED[option]
                raise UnsupportedError(
                    f"{what} in a virtual machine cannot {aim}: its volume {mount['destination']} is "
                    f"{option} (mountPropagation: {asked_by}); leave that out, or run it with a runtime "
                    "class without machines"
                )
