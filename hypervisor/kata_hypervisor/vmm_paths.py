"""Names in a sandbox's directory, for the drivers and the broker. The latter loads it: it imports nothing."""

from __future__ import annotations

RUN_DIRECTORY = "vmm"
"""Where the VMM may make sockets: it belongs to the pod's user."""

DISKS = "disks"
"""Where the VMM sees the disks that it is given while it runs, each by its id."""
