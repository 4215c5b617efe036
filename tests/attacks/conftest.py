"""Fixtures for attacks on a live pod."""

from __future__ import annotations

from node_fixtures import guest_image, node, nodes, nothing_left  # noqa: F401
