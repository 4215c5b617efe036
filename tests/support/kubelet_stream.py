"""A command in a container with its standard streams, as `kubectl exec` has a kubelet run it.

Over a WebSocket, whose messages begin with the number of a stream. Source: RFC 6455, sections 4 and 5;
Kubernetes' staging/src/k8s.io/kubelet/pkg/cri/streaming/remotecommand, "v4.channel.k8s.io".
"""

from __future__ import annotations

import json
import secrets
import socket
from base64 import b64encode
from dataclasses import dataclass
from typing import BinaryIO

PROTOCOL = "v4.channel.k8s.io"
INPUT, OUTPUT, ERRORS, STATUS = range(4)
CLOSE = 8


class StreamError(Exception):
    """The other side does not keep to the protocol; the message says how."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command went. status: 0, or that of the command. output: what it wrote, of both streams."""

    status: int
    output: bytes


def run(connection: socket.socket, path: str, given: bytes) -> Done:
    """Run a command to its end. connection: to the kubelet. path: with its query. given: its input."""
    key = b64encode(secrets.token_bytes(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: kubelet",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Protocol: {PROTOCOL}",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    with connection.makefile("rb") as answers:
        head = b"".join(iter(answers.readline, b"\r\n"))
        if b" 101 " not in head.splitlines()[0]:
            raise StreamError(f"{path}: {head!r}")
        if given:
            connection.sendall(frame(bytes([INPUT]) + given, secrets.token_bytes(4)))
        output = b""
        while (message := read_message(answers)) is not None:
            stream, content = message[0], message[1:]
            if stream == STATUS:
                return Done(exit_status(content), output)
            output += content if stream in (OUTPUT, ERRORS) else b""
    raise StreamError(f"{path} ended without a status")


def frame(message: bytes, mask: bytes) -> bytes:
    """A binary message of a client in one frame. mask: of 4 bytes."""
    size = len(message)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(message))
    return b"\x82" + length + mask + masked


def read_message(answers: BinaryIO) -> bytes | None:
    """The next message of a server that is not empty, None at the end."""
    message = b""
    while head := answers.read(2):
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(answers.read(2 if size == 126 else 8), "big")
        content = answers.read(size)
        if head[0] & 0xF == CLOSE:
            return None
        message += content
        if head[0] & 0x80 and message:
            return message
    return None


def exit_status(text: bytes) -> int:
    """The exit status that the last stream tells. Raises StreamError where it tells of none."""
    told = json.loads(text)
    if told["status"] == "Success":
        return 0
    causes = told.get("details", {}).get("causes") or ()
    for one in causes:
        if one["reason"] == "ExitCode":
            return int(one["message"])
    raise StreamError(str(told.get("message")))
