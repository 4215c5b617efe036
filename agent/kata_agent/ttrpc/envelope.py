"""What both servers do with a frame, without I/O: open a request, find its handler, seal the answer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from kata_agent.protos import ttrpc_pb2
from kata_agent.ttrpc.frames import MAX_PAYLOAD, Flag, Frame, FrameType, ProtocolError, encode
from kata_agent.ttrpc.status import Code, RpcError

Function = TypeVar("Function", bound=Callable[..., Any])
Function_co = TypeVar("Function_co", bound=Callable[..., Any], covariant=True)


class Share(enum.Enum):
    """Which share of a server's requests at once a method counts against, where a server keeps shares apart.

    WORK: requests that do something, and end. WAIT: those that report an event, which may never come.
    NONE: what is answered whatever else goes on, and must not wait for anything.
    """

    WORK = enum.auto()
    WAIT = enum.auto()
    NONE = enum.auto()


class Handler(NamedTuple, Generic[Function_co]):
    """Serves one method: the type of its request, and the function that is called with it."""

    request: type[Message]
    function: Function_co
    share: Share = Share.WORK


class Call(NamedTuple, Generic[Function]):
    """A request that was found to be well formed, with the handler that serves it.

    name: "service/method". timeout: what the caller allows, in seconds, or None.
    """

    name: str
    handler: Handler[Function]
    request: Message
    timeout: float | None


def check_frame(frame: Frame) -> bool:
    """Whether a server has to answer this frame; data for a stream that was refused is ignored.

    Stream ids need not grow: Kata's clients send concurrent requests in any order.

    Raises:
        ProtocolError: no client sends this; the connection must end.
    """
    if frame.stream_id % 2 == 0:
        raise ProtocolError(f"stream id {frame.stream_id} is even: not a client's")
    if frame.type not in (FrameType.REQUEST, FrameType.DATA):
        raise ProtocolError(f"frame of type {frame.type} sent to a server")
    return frame.type == FrameType.REQUEST


def open_request(frame: Frame, handlers: Mapping[tuple[str, str], Handler[Function]]) -> Call[Function]:
    """Parse a request frame.

    Raises:
        RpcError: the answer for a request that is too large, malformed, streaming or to an unknown method.
    """
    if frame.oversized:
        raise RpcError(
            Code.RESOURCE_EXHAUSTED, f"request of {frame.oversized} bytes is over the limit of {MAX_PAYLOAD}"
        )
    try:
        envelope = ttrpc_pb2.Request.FromString(frame.payload)
    except DecodeError:
        raise RpcError(Code.INVALID_ARGUMENT, "malformed ttrpc request") from None
    name = f"{envelope.service}/{envelope.method}"
    if frame.flags & Flag.REMOTE_OPEN and not frame.flags & Flag.REMOTE_CLOSED:
        raise RpcError(Code.UNIMPLEMENTED, f"{name}: streaming requests are not supported")
    handler = handlers.get((envelope.service, envelope.method))
    if handler is None:
        raise RpcError(Code.UNIMPLEMENTED, _unknown(envelope.service, envelope.method, handlers))
    try:
        request = handler.request.FromString(envelope.payload)
    except DecodeError:
        raise RpcError(
            Code.INVALID_ARGUMENT, f"{name}: malformed request, not a {handler.request.DESCRIPTOR.full_name}"
        ) from None
    timeout = envelope.timeout_nano / 1e9 if envelope.timeout_nano > 0 else None
    return Call(name, handler, request, timeout)


def _unknown(service: str, method: str, handlers: Mapping[tuple[str, str], object]) -> str:
    if any(known == service for known, _ in handlers):
        return f"service {service[:200]} has no method {method[:200]!r}"
    return f"service {service[:200]!r} is not served here"


def response_frame(stream_id: int, name: str, response: Message) -> bytes:
    """The frame of an answer; one over the limit becomes the error that says so."""
    envelope = ttrpc_pb2.Response(payload=response.SerializeToString())
    try:
        return encode(stream_id, FrameType.RESPONSE, envelope.SerializeToString())
    except ProtocolError as error:
        return error_frame(stream_id, RpcError(Code.RESOURCE_EXHAUSTED, f"{name}: response dropped: {error}"))


def error_frame(stream_id: int, error: RpcError) -> bytes:
    """The frame of a failure; a very long message is cut."""
    status = ttrpc_pb2.Status(code=error.code, message=_printable(error.message))
    return encode(stream_id, FrameType.RESPONSE, ttrpc_pb2.Response(status=status).SerializeToString())


def _printable(message: str, limit: int = 64 << 10) -> str:
    """Text that protobuf takes: surrogates, as file names may carry them, are escaped."""
    return message[:limit].encode("utf-8", "backslashreplace").decode()


def internal_error(name: str, error: Exception) -> RpcError:
    """The default answer for an exception that a handler did not mean to raise."""
    return RpcError(Code.INTERNAL, f"{name}: internal error: {type(error).__name__}: {error}")
