"""Work that is finished in any case, also when its caller is cancelled as a ttrpc server cancels."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from kata_hypervisor.concurrency import finish, uninterrupted

STEPS = 5


async def steps(done: list[int]) -> str:
    """Work of several awaits."""
    for number in range(STEPS):
        await asyncio.sleep(0)
        done.append(number)
    return "result"


async def turns(count: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_returns_what_the_work_returns_and_raises_what_it_raises() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert await finish(steps([])) == "result"
    with pytest.raises(ValueError, match="no"):
        await finish(failing())


@pytest.mark.parametrize("when", range(1, STEPS + 3))
async def test_a_native_cancellation_at_each_await_comes_after_the_work(when: int) -> None:
    done: list[int] = []
    caller = asyncio.create_task(finish(steps(done)))
    await turns(when)
    cancelled_in_time = caller.cancel()
    await asyncio.wait({caller})
    assert done == list(range(STEPS))
    assert caller.cancelled() == cancelled_in_time


async def test_one_that_is_cancelled_before_it_began_does_nothing() -> None:
    done: list[int] = []
    work = steps(done)
    caller = asyncio.create_task(finish(work))
    caller.cancel()
    await asyncio.wait({caller})
    assert (caller.cancelled(), done) == (True, [])
    work.close()


async def test_it_is_cancelled_again_and_again() -> None:
    done: list[int] = []
    caller = asyncio.create_task(finish(steps(done)))
    while not caller.done():
        await asyncio.sleep(0)
        caller.cancel()
    assert done == list(range(STEPS))
    assert caller.cancelled()


async def test_a_native_deadline_is_a_timeout_after_the_work() -> None:
    done: list[int] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await finish(steps(done))
    assert done == list(range(STEPS))


async def test_a_cancelled_scope_is_seen_after_the_work() -> None:
    done: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await finish(steps(done))
        await anyio.lowlevel.checkpoint()
        raise AssertionError("it was cancelled")
    assert done == list(range(STEPS))
    assert scope.cancelled_caught


async def test_what_the_work_raised_is_the_cause_of_a_cancellation() -> None:
    started = asyncio.Event()

    async def failing() -> None:
        started.set()
        await turns(3)
        raise ValueError("no")

    caller = asyncio.create_task(finish(failing()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await caller
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_shield_of_anyio_does_not_hold_where_it_does() -> None:
    """Why there is `finish`."""
    done: list[int] = []

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await steps(done)

    caller = asyncio.create_task(shielded())
    await turns(2)
    caller.cancel()
    await asyncio.wait({caller})
    assert len(done) < STEPS


@pytest.mark.parametrize("when", range(1, STEPS + 3))
async def test_a_caller_of_uninterrupted_work_has_its_result_before_it_is_cancelled(when: int) -> None:
    got: list[str] = []
    done: list[int] = []

    async def call() -> None:
        got.append(await uninterrupted(steps(done)))
        await asyncio.sleep(0)

    caller = asyncio.create_task(call())
    await turns(when)
    cancelled_in_time = caller.cancel()
    await asyncio.wait({caller})
    assert (got, done) == (["result"], list(range(STEPS)))
    assert caller.cancelled() == cancelled_in_time


async def test_a_deadline_of_uninterrupted_work_is_a_timeout_at_the_next_await() -> None:
    got: list[str] = []

    async def call() -> None:
        async with asyncio.timeout(0):
            got.append(await uninterrupted(steps([])))
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await call()
    assert got == ["result"]
    await asyncio.sleep(0)  # nothing of it is left


async def test_uninterrupted_work_that_fails_raises_its_own_error_first() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    errors: list[Exception] = []

    async def call() -> None:
        try:
            await uninterrupted(failing())
        except ValueError as error:
            errors.append(error)
        await asyncio.sleep(0)

    caller = asyncio.create_task(call())
    await turns(1)
    caller.cancel()
    await asyncio.wait({caller})
    assert (len(errors), caller.cancelled()) == (1, True)
