"""Asking the shim of one running sandbox, for the commands that do."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeVar

from kata_runtime.ctl.errors import CommandError, sentence

if TYPE_CHECKING:
    from google.protobuf.message import Message

Answer = TypeVar("Answer", bound="Message")
TIMEOUT = 60.0
"""Seconds that a shim may take to answer."""


async def call_shim(path: str, service: str, method: str, request: Message, answer: type[Answer]) -> Answer:
    """Call a method of the shim that serves at a path, and return its answer.

    Raises:
        CommandError: nobody can be reached there.
        RpcError: the shim refused, or did not answer in time.
    """
    from kata_agent.ttrpc.client import Client

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise CommandError(f"cannot connect to the shim at {path}: {sentence(error)}") from error
    client = await Client.from_socket(sock)
    try:
        return await client.call(service, method, request, answer, timeout=TIMEOUT)
    finally:
        await client.aclose()
