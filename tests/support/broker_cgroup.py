"""The cgroups that tests of the broker make: of this process alone, for others run the same tests."""

from __future__ import annotations

import os

OUTER = f"brokertest{os.getpid()}"
NAME = f"{OUTER}-pods"
"""A directory of its own, or with ".slice" behind it a slice in that of OUTER, as systemd names them."""
