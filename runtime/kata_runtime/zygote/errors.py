"""Errors of the zygote."""

from __future__ import annotations


class NotServedError(Exception):
    """A launcher gets no shim, for this reason, and starts one itself."""
