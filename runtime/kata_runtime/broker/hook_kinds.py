"""The kinds of OCI hooks that run on the host; startContainer runs in the guest. Source: config.md and
runtime.md of the OCI runtime specification.
"""

from __future__ import annotations

STATUS = {
    "prestart": "creating",
    "createRuntime": "creating",
    "createContainer": "creating",
    "poststart": "running",
    "poststop": "stopped",
}
"""The kinds in their order, and the container's status when they run."""

POSTSTART, POSTSTOP = "poststart", "poststop"

LATE = (POSTSTART, POSTSTOP)
"""Kinds that run when the guest does, or has: a failure is a warning, and the next hook runs all the same."""

CREATION = tuple(kind for kind in STATUS if kind not in LATE)
"""Kinds that run while the container is created; the guest has not run an instruction."""

IN_POD = "createContainer"
"""The kind that runs in the pod's network namespace."""
