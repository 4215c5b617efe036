"""The REST client against servers that behave and servers that do not, byte by byte."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable

import anyio
import pytest

from kata_hypervisor.rest import MESSAGE_LIMIT, RefusedError, RestClient, RestError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: x\r\n\r\n"


def reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(line[16:]) for line in head.split("\r\n") if line.startswith("Content-Length: ")), 0)
    return head, await reader.readexactly(length)


class Server:
    """Answers each request on one connection with the next of the replies; None hangs up, "" says nothing."""

    def __init__(self, *replies: bytes | None, budget: float = 20.0) -> None:
        ours, self.theirs = socket.socketpair()
        self.client = RestClient(ours, "the vmm", base="/v1", budget=budget)
        self.replies = list(replies)
        self.seen: list[tuple[str, bytes]] = []

    async def __aenter__(self) -> Server:
        reader, self.writer = await asyncio.open_connection(sock=self.theirs)
        self.task = asyncio.ensure_future(self._serve(reader))
        return self

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        for answer in self.replies:
            self.seen.append(await read_request(reader))
            if answer is None:
                break
            self.writer.write(answer)
            await self.writer.drain()
            if answer == b"":
                await asyncio.sleep(600)
        self.writer.write_eof()

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self.task.cancel()
        await asyncio.wait({self.task})
        self.writer.close()


async def test_an_answer_without_a_body_is_none_and_the_connection_is_kept() -> None:
    async with Server(NO_CONTENT, reply(200, b'{"a": [1]}')) as server:
        assert await server.client.request("PUT", "/x", {"k": "v"}) is None
        assert await server.client.request("GET", "/y") == {"a": [1]}
        (first, body), (second, _) = server.seen
        assert first.startswith("PUT /v1/x HTTP/1.1\r\n")
        assert json.loads(body) == {"k": "v"}
        assert "Content-Length" not in second


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"fault_message": "no such drive"}', "no such drive"),
        (b'["Error from API", "The VM is not created"]', "Error from API: The VM is not created"),
        (b"plain\nwords \x1b[31m", "plain words [31m"),
        (b"", ""),
        (b"[" * 100_000, "[" * 1000),
    ],
)
@pytest.mark.parametrize("status", [300, 400, 404, 500])
async def test_a_refusal_has_the_vmms_message_and_is_asked_once(
    body: bytes, message: str, status: int
) -> None:
    async with Server(reply(status, body), NO_CONTENT) as server:
        with pytest.raises(RefusedError) as caught:
            await server.client.request("PUT", "/x", {})
        assert (caught.value.status, caught.value.fault) == (status, message)
        suffix = f": {message}" if message else ""
        assert str(caught.value) == f"the vmm refused PUT /v1/x with status {status}{suffix}"
        assert len(server.seen) == 1
        assert await server.client.request("PUT", "/y") is None  # a refusal costs nothing else


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "it closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "it closed the connection"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"a', "peer closed connection"),
        (b"220 mail.example.org ESMTP\r\n\r\n", "is not HTTP"),
        (b"\0" * 100 + b"\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "is not HTTP"),
        (reply(200, b"all is well"), "is not JSON"),
        (reply(200, b"[" * 100_000), "is not JSON"),
        (reply(200, b" " * (MESSAGE_LIMIT + 1)), f"longer than {MESSAGE_LIMIT} bytes"),
    ],
)
async def test_an_answer_that_is_none_ends_the_connection(answer: bytes | None, why: str) -> None:
    async with Server(answer) as server:
        with pytest.raises(
            RestError, match=f"the vmm gave no usable answer to GET /v1/x: .*({why})"
        ) as caught:
            await server.client.request("GET", "/x")
        assert not isinstance(caught.value, RefusedError)
        with pytest.raises(RestError, match="cannot send GET /v1/y to the vmm: "):
            await server.client.request("GET", "/y")
        assert len(server.seen) == 1


async def test_a_silent_vmm_meets_the_budget() -> None:
    async with Server(b"") as server:
        with pytest.raises(RestError, match=r"GET /v1/x: no answer within 0\.05 s"):
            await server.client.request("GET", "/x", budget=0.05)


async def test_a_vmm_that_announces_its_end_is_asked_nothing_more() -> None:
    async with Server(b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n") as server:
        await server.client.request("PUT", "/x")
        with pytest.raises(RestError, match="it announced that it would close the connection"):
            await server.client.request("PUT", "/y")


async def test_an_interim_response_is_no_answer() -> None:
    async with Server(b"HTTP/1.1 100 \r\n\r\n" + NO_CONTENT) as server:
        assert await server.client.request("PUT", "/x", {}) is None


async def test_a_cancelled_request_leaves_no_answer_for_the_next() -> None:
    async with Server(b"") as server:
        asking = asyncio.ensure_future(server.client.request("GET", "/x"))
        while not server.seen:  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(RestError, match="an earlier request was cancelled"):
            await server.client.request("GET", "/y")


async def test_closing_ends_a_request_that_waits() -> None:
    async with Server(b"") as server:
        asking = asyncio.ensure_future(server.client.request("GET", "/x"))
        while not server.seen:  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0)
        await server.client.aclose()
        with pytest.raises(RestError):
            await asking
        await server.client.aclose()


async def test_requests_wait_for_each_other() -> None:
    async with Server(reply(200, b"1"), reply(200, b"2"), reply(200, b"3")) as server:
        asked = (server.client.request("GET", f"/{number}") for number in range(3))
        assert await asyncio.gather(*asked) == [1, 2, 3]
        assert [head.split()[1] for head, _ in server.seen] == ["/v1/0", "/v1/1", "/v1/2"]


async def test_descriptors_travel_with_the_first_byte() -> None:
    ours, theirs = socket.socketpair()
    client = RestClient(ours, "the vmm", budget=60)
    reader, writer = os.pipe()
    try:
        asking = asyncio.ensure_future(client.request("PUT", "/net", {"id": "n"}, fds=[writer]))
        theirs.setblocking(False)
        await anyio.wait_readable(theirs)
        data, fds, _, _ = socket.recv_fds(theirs, 1, 4)
        while not data.endswith(b'{"id": "n"}'):
            data += await asyncio.get_running_loop().sock_recv(theirs, 65536)
        os.close(writer)
        writer, *others = fds
        assert others == []
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"
        assert data.startswith(b"PUT /net HTTP/1.1\r\n")
        theirs.sendall(NO_CONTENT)
        assert await asking is None
    finally:
        await client.aclose()
        theirs.close()
        os.close(reader)
        os.close(writer)


async def test_a_request_larger_than_the_sockets_buffer_is_sent_in_pieces() -> None:
    async with Server(NO_CONTENT) as server:
        await server.client.request("PUT", "/x", "y" * 5_000_000)
        assert len(server.seen[0][1]) == 5_000_002
