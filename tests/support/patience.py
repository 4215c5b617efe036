"""How long tests wait for what must come: it is no measure of anything, and a slow host raises it."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("KATA_TEST_PATIENCE", "60"))
"""Seconds: those of KATA_TEST_PATIENCE, which the rig sets."""
