"""The shim's end of the channel: requests that are cancelled, late replies, and a broker that is lost."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from kata_runtime.broker import messages
from kata_runtime.broker.errors import BrokerLostError, RequestFailedError, RequestRefusedError
from kata_runtime.broker.operations import cgroup, files, streams
from kata_runtime.broker.request_channel import RequestChannel


class Peer:
    """The broker's end, which the test plays, and what the channel has reported."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.notices: list[dict[str, Any]] = []
        self.lost = anyio.Event()
        self.faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: self.faults.append(fault))
        self.patience = 60.0
        self.channel = RequestChannel(
            ours, "the broker has exited", self.notices.append, self.lost.set, patience=lambda: self.patience
        )

    async def take(self) -> dict[str, Any]:
        """The next request."""
        await anyio.wait_readable(self.socket)
        return messages.receive(self.socket)[0]

    def reply(self, number: object, *descriptors: int, **reply: Any) -> None:
        messages.send(self.socket, messages.encode({"id": number, **reply}), descriptors)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    made.socket.close()
    await made.lost.wait()
    assert not made.channel.is_open
    assert made.faults == []


@pytest.fixture
def pipe() -> tuple[int, int]:
    """A pipe whose reading end, given to the test, sees when no descriptor of the other is left."""
    return os.pipe()


async def asked(peer: Peer) -> asyncio.Task[Any]:
    """A task that waits for a FIFO, and whose request was sent."""
    task = asyncio.create_task(peer.channel.request(streams.open_fifo, path="/f", mode="r"))
    assert await peer.take() == {"id": 1, "op": "open_fifo", "path": "/f", "mode": "r"}
    return task


async def still_works(peer: Peer) -> None:
    async def answer() -> None:
        peer.reply((await peer.take())["id"], result={"count": 3})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        assert (await peer.channel.request(cgroup.oom_kills)).result == {"count": 3}


async def receiving(peer: Peer, got: list[Any]) -> None:
    """Ask for a FIFO, keep the reply, and wait for more."""
    got.append(await peer.channel.request(streams.open_fifo, path="/f", mode="r"))
    await anyio.sleep_forever()


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_one_that_is_cancelled_gets_its_reply_and_then_the_cancellation(
    peer: Peer, pipe: tuple[int, int], cancellations: int
) -> None:
    read, write = pipe
    got: list[Any] = []
    task = asyncio.create_task(receiving(peer, got))
    await peer.take()
    for _ in range(cancellations):
        task.cancel()  # as asyncio itself does it: no shield of anyio holds against that
        await asyncio.sleep(0)
    assert not task.done()
    peer.reply(1, write, result={})
    os.close(write)
    await asyncio.wait({task})
    assert task.cancelled()
    (descriptor,) = got[0].descriptors
    os.close(descriptor)
    assert os.read(read, 1) == b""
    os.close(read)
    await still_works(peer)


async def test_a_deadline_of_the_caller_is_a_timeout_after_the_reply(peer: Peer) -> None:
    got: list[Any] = []

    async def ask() -> None:
        async with asyncio.timeout(0):
            await receiving(peer, got)

    task = asyncio.create_task(ask())
    await peer.take()
    peer.reply(1, result={})
    with pytest.raises(TimeoutError):
        await task
    assert len(got) == 1


async def test_a_reply_that_comes_with_a_cancellation_leaks_no_descriptor(
    peer: Peer, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    got: list[Any] = []
    task = asyncio.create_task(receiving(peer, got))
    await peer.take()
    peer.reply(1, write, result={})
    os.close(write)
    peer.channel._receive()  # the reply is there, and its task has not run yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    messages.close_all(got[0].descriptors)
    assert os.read(read, 1) == b""
    os.close(read)
    await still_works(peer)


async def test_a_reply_that_nobody_asked_for_is_dropped(peer: Peer, pipe: tuple[int, int]) -> None:
    read, write = pipe
    for number in (99, "x", None, 1.5):
        peer.reply(number, write, result={})
    os.close(write)
    await still_works(peer)
    assert os.read(read, 1) == b""
    os.close(read)


async def test_an_error_is_raised_as_its_kind(peer: Peer) -> None:
    for reply, kind in (
        ({"kind": "refused", "message": "no", "errno": 0}, RequestRefusedError),
        ({"kind": "failed", "message": "no", "errno": 6}, RequestFailedError),
    ):
        task = asyncio.create_task(peer.channel.request(files.remove, path="/p"))
        peer.reply((await peer.take())["id"], error=reply)
        with pytest.raises(kind, match=r"^no$"):
            await task


async def test_a_request_that_is_too_long_is_not_sent(peer: Peer) -> None:
    with pytest.raises(RequestRefusedError, match=r"^remove: a message of .* bytes is too long"):
        await peer.channel.request(files.remove, path="/" + "x" * messages.MAX_BYTES)
    await still_works(peer)


async def test_an_answer_that_comes_soon_takes_no_turn_of_the_event_loop(peer: Peer) -> None:
    messages.send(peer.socket, messages.encode({"exited": 7, "code": 0}))
    peer.reply(1, result={"count": 3})
    with pytest.raises(StopIteration) as done:
        peer.channel.request(cgroup.oom_kills).send(None)
    assert done.value.value.result == {"count": 3}
    assert peer.notices == [{"exited": 7, "code": 0}]


async def test_an_answer_that_comes_later_keeps_nobody_waiting_for_the_event_loop(peer: Peer) -> None:
    task = asyncio.create_task(peer.channel.request(cgroup.oom_kills))
    await peer.take()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    peer.reply(1, result={"count": 3})
    assert (await task).result == {"count": 3}


async def test_notices_are_handed_on(peer: Peer) -> None:
    messages.send(peer.socket, messages.encode({"exited": 7, "code": 0}))
    await still_works(peer)
    assert peer.notices == [{"exited": 7, "code": 0}]


@pytest.mark.parametrize("packet", [b"", b"]"])
async def test_a_lost_broker_fails_every_request(peer: Peer, packet: bytes) -> None:
    task = await asked(peer)
    if packet:
        peer.socket.send(packet)
    peer.socket.close()
    with pytest.raises(BrokerLostError, match=r"^the broker has exited"):
        await task
    with pytest.raises(BrokerLostError, match=r"^the broker has exited"):
        await peer.channel.request(cgroup.oom_kills)


async def test_a_broker_that_stands_still_is_lost_and_named_for_every_request(
    peer: Peer, pipe: tuple[int, int]
) -> None:
    waiting = await asked(peer)
    peer.patience = 0.05
    with pytest.raises(BrokerLostError, match=r"the broker did not answer the request oom_kills within 0"):
        await peer.channel.request(cgroup.oom_kills)
    with pytest.raises(BrokerLostError, match="did not answer the request oom_kills"):
        await waiting  # it would have waited longer, but the broker cannot be asked any more
    assert peer.lost.is_set()
    assert peer.channel.gave_up
    with pytest.raises(BrokerLostError, match="did not answer"):
        await peer.channel.request(cgroup.oom_kills)
    read, write = pipe
    with pytest.raises(BrokenPipeError):  # what it answers later reaches nobody, and it sees the end
        peer.reply(1, write, result={})
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


async def test_a_broker_whose_socket_is_full_is_lost_as_well(peer: Peer) -> None:
    peer.patience = 0.2
    many = [asyncio.create_task(peer.channel.request(files.unmount, target="/x" * 900)) for _ in range(600)]
    results = await asyncio.gather(*many, return_exceptions=True)
    assert all(isinstance(one, BrokerLostError) for one in results)
    assert peer.channel.gave_up
