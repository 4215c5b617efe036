"""An event loop for fuzzers: one for all inputs; no exception goes unseen, no task is left over."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Coroutine
from typing import Any

LONGEST = 64 << 10
"""Bytes of an input that are sent: what a socketpair takes without a reader."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end. An exception in a callback, or a task that still runs then, is a finding."""
    loop, failures = _loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    loop.run_until_complete(main)
    left = asyncio.all_tasks(loop)
    assert not left, left
    for context in failures:
        raise context.get("exception") or AssertionError(context["message"])


def peer_that_sends(data: bytes) -> tuple[socket.socket, socket.socket]:
    """A connected socket, and its peer, which has sent the data and sends no more."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data[:LONGEST])
    theirs.shutdown(socket.SHUT_WR)
    return ours, theirs
