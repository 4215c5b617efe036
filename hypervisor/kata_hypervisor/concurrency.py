"""What structured concurrency leaves to us: a race, a gathering, and work that is finished in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """Run work to its end in a task of its own, whatever happens to the caller; return what it returns.

    A caller that is cancelled waits all the same; the cancellation is raised once the work has ended, and
    what the work raised is its cause. `anyio.CancelScope(shield=True)` alone does not do that: it holds
    against scopes of anyio, and not against `asyncio.Task.cancel` and `asyncio.timeout`, by which a ttrpc
    server cancels the requests of a closed connection or of a caller whose deadline has passed.

    The work must be bounded: nobody can cancel it.
    """
    task = asyncio.ensure_future(work)
    if (cancellation := await _wait_out(task)) is None:
        return task.result()
    raise cancellation from (None if task.cancelled() else task.exception())


async def uninterrupted(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Run work as `finish` does; a caller that was cancelled gets its result, and is cancelled again then.

    For work whose result is something to be undone: the cancellation comes at the caller's next await, which
    has the result by then.
    """
    task = asyncio.ensure_future(work)
    cancellation = await _wait_out(task)
    if cancellation is not None and (caller := asyncio.current_task()) is not None:
        caller.uncancel()  # the number of cancellations stays what it is: asyncio.timeout compares it
        caller.cancel(*cancellation.args)
    return task.result()


async def _wait_out(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait for a task or future however often the caller is cancelled; return the last cancellation."""
    cancellation: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # or a cancelled scope would interrupt the wait again and again
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancellation = error
    return cancellation


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
            except Exception as error:  # noqa: BLE001 - raised by the caller, without the group around it
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
            except Exception as error:  # noqa: BLE001 - raised by the caller, without the group around it
                errors.append(error)
                group.cancel_scope.cancel()

        for function in functions:
            group.start_soon(run, function)
    if errors:
        raise errors[0]
