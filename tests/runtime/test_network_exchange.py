"""Asking the network program, which a thread stands in for."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from kata_runtime.network import exchange
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import Namespace


def answering(answer: bytes, fds: int = 0) -> tuple[socket.socket, threading.Thread]:
    """A channel to a program that answers so, with so many descriptors, once it was asked."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            request = b""
            while piece := theirs.recv(1 << 16):
                request += piece
            assert json.loads(request)["operation"] in ("dump", "attach")
            pipe = os.pipe()
            socket.send_fds(theirs, [answer[:1]], [pipe[0]] * fds)
            theirs.sendall(answer[1:])
            for fd in pipe:
                os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    return ours, thread


def ask_async(channel: socket.socket, request: exchange.Request[Any]) -> Any:
    channel.setblocking(False)
    return anyio.run(exchange.ask_async, channel, request)


BOTH = pytest.mark.parametrize("ask", [exchange.ask, ask_async])
Ask = Callable[[socket.socket, exchange.Request[Any]], Any]


@BOTH
def test_an_answer_larger_than_a_sockets_buffer(ask: Ask) -> None:
    text = json.dumps({"namespace": Namespace().to_json(), "rest": "x" * (1 << 20)})
    channel, thread = answering(text.encode())
    with channel:
        assert ask(channel, exchange.dump()) == Namespace()
    thread.join()


@BOTH
def test_descriptors_by_interface(ask: Ask) -> None:
    plan: dict[str, list[Any]] = {"attachments": [], "routes": [], "neighbours": [], "warnings": []}
    answer = {"namespace": Namespace().to_json(), "plan": plan, "queues": [2, 0, 1]}
    channel, thread = answering(json.dumps(answer).encode(), fds=5)
    with channel:
        attached = ask(channel, exchange.attach("tcfilter"))
    thread.join()
    assert [len(fds) for fds in attached.queues] == [2, 0, 1]
    assert len(attached.listeners) == 2
    for fd in (*attached.listeners, *(fd for fds in attached.queues for fd in fds)):
        os.close(fd)


@BOTH
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [(b'{"error": "one sentence"}', "one sentence"), (b"{", "exited without an answer")],
)
def test_an_error_closes_its_descriptors(ask: Ask, answer: bytes, sentence: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    channel, thread = answering(answer, fds=3)
    with channel, pytest.raises(NetworkError, match=sentence):
        ask(channel, exchange.attach("tcfilter"))
    thread.join()
    assert len(os.listdir("/proc/self/fd")) == before


def test_others_go_on_while_it_works() -> None:
    async def go() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            async with anyio.create_task_group() as tasks:

                async def answer_later() -> None:
                    await anyio.lowlevel.checkpoint()
                    theirs.send(json.dumps({"namespace": Namespace().to_json()}).encode())
                    theirs.shutdown(socket.SHUT_WR)

                tasks.start_soon(answer_later)
                assert await exchange.ask_async(ours, exchange.dump()) == Namespace()

    anyio.run(go)
