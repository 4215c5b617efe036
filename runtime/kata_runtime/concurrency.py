"""What structured concurrency leaves to us: a race, and a pair whose error is not a group of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def race(*functions: Callable[[], Awaitable[T]]) -> T:
    """Run all at once; return what the first to finish returns or raise what it raises; cancel the others.

    The exception is the one that was raised, not a group of one.
    """
    results: list[T] = []
    errors: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def run(function: Callable[[], Awaitable[T]]) -> None:
            try:
                result = await function()
            except Exception as error:
                if not results and not errors:
                    errors.append(error)
            else:
                if not results and not errors:
                    results.append(result)
            group.cancel_scope.cancel()

        for function in functions:
            group.start_soon(run, function)
    if errors:
        raise errors[0]
    return results[0]


async def gather(*functions: Callable[[], Awaitable[object]]) -> None:
    """Run all at once and return when all have returned; the first to raise cancels the others.

    The exception is the one that was raised, not a group of one.
    """
    errors: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def run(function: Callable[[], Awaitable[object]]) -> None:
            try:
                await function()
            except Exception as error:
                errors.append(error)
                group.cancel_scope.cancel()

        for function in functions:
            group.start_soon(run, function)
    if errors:
        raise errors[0]
