"""What a host may lack of what confines a pod, and by how much the pod is weaker then.

A mechanism is named in `required_confinement` of [runtime]: a host without it then refuses pods. What every
host has that runs pods at all (users, capabilities, seccomp, the namespaces of a VMM) is required always.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

LANDLOCK, CGROUP = "landlock", "cgroup"
MECHANISMS = (LANDLOCK, CGROUP)
"""As `required_confinement` may name them."""

CONTROLLERS = ("cpu", "memory", "pids")
"""The controllers that bound what a pod's processes use of the host."""


def find_lacking(*, landlock: bool, controllers: Collection[str], sealed: bool) -> dict[str, str]:
    """What the host lacks: by its name, a sentence that says what is weaker.

    landlock: whether it is in force on the shim. controllers: those of the pod's cgroup. sealed: whether the
    shim's filter will be on.
    """
    lacking = {}
    if not landlock:
        rest = "its filter alone, which lets no call through that opens a file or a socket"
        if not sealed:
            rest = "its user alone, because shim_seccomp is off: it opens whatever everybody may open"
        lacking[LANDLOCK] = f"this kernel has no Landlock: the runtime's process is kept from files by {rest}"
    if missing := [name for name in CONTROLLERS if name not in controllers]:
        lacking[CGROUP] = (
            f"the pod's cgroup has no controller for {', '.join(missing)}: what its processes use of that on "
            "the host is not bounded"
        )
    return lacking


def refusal(lacking: dict[str, str], required: Sequence[str]) -> str | None:
    """Why a pod may not start on a host that lacks something; None where nothing that is required lacks."""
    missing = [name for name in required if name in lacking]
    if not missing:
        return None
    names = ", ".join(f'"{name}"' for name in missing)
    why = "; ".join(lacking[name] for name in missing)
    return (
        f"the pod is not started, because required_confinement in [runtime] names {names}: {why}; run it on "
        "a host that has it, or remove the name to start pods without"
    )
