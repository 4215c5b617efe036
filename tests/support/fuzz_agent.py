"""What a fuzzer calls with bytes between host and guest agent: ttrpc, the multiplexer, the replies."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio
from google.protobuf.message import DecodeError, Message

import fuzz_loop
from kata_agent.client import AgentClient
from kata_agent.mux.core import MAX_DATA, MAX_OUTPUT, WINDOW, Event, FrameType, Mux, ProtocolError
from kata_agent.mux.guest import Acceptor, MuxGuest
from kata_agent.mux.host import MuxHost
from kata_agent.protos import agent_pb2 as pb
from kata_agent.protos import health_pb2
from kata_agent.transport import GuestUnreachableError
from kata_agent.ttrpc import frames
from kata_agent.ttrpc.blocking import BlockingServer
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.envelope import Handler
from kata_agent.ttrpc.server import Server
from kata_agent.ttrpc.service import service_of
from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import metrics_pb2
from kata_runtime.shim import metrics
from kata_runtime.stdio.files import StdioFiles
from kata_runtime.stdio.polled import PolledStdio

SERVICE = service_of(pb.DESCRIPTOR.services_by_name["AgentService"])
STREAMS = 3
PORT = 1024
HELLO = bytes(Mux(host=True).output)


def ttrpc_client(data: bytes) -> None:
    """The data is all that an agent sends while five calls wait; they have the streams 1, 3, 5, 7 and 9."""
    fuzz_loop.run(_call(data))


async def _call(data: bytes) -> None:
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with theirs:
        agent = AgentClient(await Client.from_socket(ours), timeout=60)
        answers = await asyncio.gather(
            agent.wait_process(pb.WaitProcessRequest()),
            agent.stats_container(pb.StatsContainerRequest()),
            agent.get_guest_details(pb.GuestDetailsRequest()),
            agent.get_oom_event(pb.GetOOMEventRequest()),
            agent.check(health_pb2.CheckRequest()),
            return_exceptions=True,
        )
        await agent.aclose()
    for answer, kind in zip(answers, ANSWERS, strict=True):
        if isinstance(answer, RpcError):
            assert answer.code is not Code.OK
        elif isinstance(answer, BaseException):
            raise answer
        else:
            assert isinstance(answer, kind)


ANSWERS = (
    pb.WaitProcessResponse,
    pb.StatsContainerResponse,
    pb.GuestDetailsResponse,
    pb.OOMEvent,
    health_pb2.HealthCheckResponse,
)


def ttrpc_server(data: bytes) -> None:
    """The data is all that a caller sends, to the server on asyncio, and to the guest's."""
    fuzz_loop.run(_serve(data))
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with theirs:
        failures: list[BaseException | None] = []
        hook, threading.excepthook = threading.excepthook, lambda args: failures.append(args.exc_value)
        try:
            _guest_server().serve(ours)
            for thread in threading.enumerate():
                if thread.name.startswith(SERVICE.full_name):
                    thread.join()
        finally:
            threading.excepthook = hook
        assert not failures, failures
        _check_answers(theirs)


async def _serve(data: bytes) -> None:
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with theirs:
        await _host_server().serve_connection(ours)
        _check_answers(theirs)


@functools.cache
def _host_server() -> Server:
    return Server(_handlers(_answer_later))


@functools.cache
def _guest_server() -> BlockingServer:
    return BlockingServer(_handlers(_answer), log=lambda line: None)


def _handlers(function: Any) -> Mapping[tuple[str, str], Handler[Any]]:
    return {
        (SERVICE.full_name, name): Handler(method.request, functools.partial(function, method.response))
        for name, method in SERVICE.methods.items()
    }


def _answer(response: type[Message], request: Message) -> Message:
    """Answer with what fits, or fail, as the request's size says."""
    size = request.ByteSize()
    if size % 4 == 1:
        raise RpcError(Code.NOT_FOUND, "no \udcff such thing")
    if size % 4 == 3:
        raise OSError(2, "no such file")
    return response()


async def _answer_later(response: type[Message], request: Message) -> Message:
    return _answer(response, request)


def _check_answers(sock: socket.socket) -> None:
    """See that what a server has written is whole frames of answers."""
    decoder, answers = frames.FrameDecoder(), list[frames.Frame]()
    try:
        while data := sock.recv(1 << 16):
            answers += decoder.feed(data)
    except ConnectionResetError:
        return  # it closed the connection before it had read all
    assert not decoder.pending
    for answer in answers:
        assert answer.type == frames.FrameType.RESPONSE
        assert answer.stream_id % 2 == 1
        assert not answer.oversized


def mux(data: bytes) -> None:
    """The first byte chooses a side, and the protocol alone or with its sockets; the rest is what comes."""
    which, sent = (data[0] if data else 0), data[1:]
    match which & 3:
        case 0 | 1 as side:
            _mux_core(sent, host=side == 0)
        case 2:
            fuzz_loop.run(_mux_host(sent))
        case _:
            _mux_guest(HELLO + sent)


def _mux_core(data: bytes, *, host: bool) -> None:
    side = Mux(host=host)
    opened = [side.open(PORT) for _ in range(STREAMS)] if host else []
    seen: dict[int, int] = {}
    try:
        for at in range(0, len(data), 61):
            for event in side.receive(data[at : at + 61]):
                _use(side, event, opened, seen)
            assert len(side.output) <= MAX_OUTPUT + MAX_DATA
    except ProtocolError:
        return


def _use(side: Mux, event: Event, opened: Sequence[int], seen: dict[int, int]) -> None:
    """Do what the users of a stream do. seen: bytes that came on each."""
    if event.type == FrameType.OPEN:
        side.accept(event.stream) if event.number == PORT else side.refuse(event.stream)
    elif event.type == FrameType.DATA:
        seen[event.stream] = seen.get(event.stream, 0) + len(event.data)
        assert 0 < len(event.data) <= MAX_DATA
        if event.data[0] & 1:
            side.consume(event.stream, len(event.data))
            seen[event.stream] = 0
        assert seen[event.stream] <= 2 * WINDOW
    elif event.type in (FrameType.ACCEPT, FrameType.REFUSE):
        assert event.stream in opened
    credit = side.credit(event.stream)
    assert 0 <= credit <= WINDOW
    if event.type == FrameType.WINDOW and credit:
        side.send(event.stream, bytes(min(credit, MAX_DATA)))


async def _mux_host(data: bytes) -> None:
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with theirs:
        host = MuxHost(ours)
        for answer in await asyncio.gather(
            *(host.connect(PORT) for _ in range(STREAMS)), return_exceptions=True
        ):
            if isinstance(answer, BaseException):
                if not isinstance(answer, GuestUnreachableError):
                    raise answer
                continue
            sock, number = answer
            with sock:
                assert 0 < number <= STREAMS
                assert not sock.getblocking()
        await asyncio.sleep(0)  # who hung up is noticed
        await host.aclose()


def _mux_guest(data: bytes) -> None:
    ours, theirs = fuzz_loop.peer_that_sends(data)
    with ours, theirs:
        guest = MuxGuest(ours.fileno())
        accepted = guest.listen(PORT)
        user = threading.Thread(target=_talk, args=(accepted,))
        user.start()
        try:
            guest.run()
        except (ProtocolError, ConnectionError):
            pass
        finally:
            user.join()


def _talk(accepted: Acceptor) -> None:
    """Take each stream, and close it."""
    while True:
        try:
            sock, number = accepted.accept()
        except ConnectionError:
            return
        with sock:
            assert 0 < number < 1 << 32


def agent_replies(data: bytes) -> None:
    """The first byte chooses: a container's statistics, or the answers to who moves a process's streams."""
    if not data:
        return
    if data[0] & 1:
        fuzz_loop.run(_poll(data[1:]))
        return
    try:
        stats = pb.StatsContainerResponse.FromString(data[1:])
    except DecodeError:
        return
    found = metrics.to_metrics(stats)
    assert metrics_pb2.Metrics.FromString(metrics.encode(found).value) == found
    assert metrics.total([found, found]).pids.current >= found.pids.current


class _Answers:
    """In the place of a Client: answers each call with the next record of the data, and then no more."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[Any],
        *,
        timeout: float | None = None,
    ) -> Any:
        await asyncio.sleep(0)
        if not self._left:
            raise RpcError(Code.UNAVAILABLE, "no more answers")
        end = 1 + self._left[0]
        record, self._left = self._left[1:end], self._left[end:]
        try:
            return response_type.FromString(record)
        except DecodeError:
            raise RpcError(Code.INTERNAL, "malformed answer") from None


async def _poll(data: bytes) -> None:
    """Move the streams of a process whose input is ten bytes."""
    stdin, feeding = os.pipe()
    os.write(feeding, b"ten bytes.")
    os.close(feeding)
    outputs = [os.pipe() for _ in range(2)]
    for fd in (stdin, *(writing for _, writing in outputs)):
        os.set_blocking(fd, False)
    files = StdioFiles(stdin, outputs[0][1], outputs[1][1])
    try:
        async with anyio.create_task_group() as tasks:
            agent = AgentClient(cast(Client, _Answers(data[: fuzz_loop.LONGEST])), timeout=60)
            stdio = PolledStdio(files, agent, "c", "c", terminal=False)
            stdio.start(tasks)
            await stdio.drained.wait()
            stdio.notice("the end")
            stdio.close()
    finally:
        files.close()
        for reading, _ in outputs:
            os.close(reading)
