"""How the launcher asks the node's zygote for a shim, and what it asks: one message, two answers.

    launcher                                   zygote's child
      START, what the shim is, two descriptors -->
                                             <-- READY and its pid: it is what a fork of the launcher would be
      GO                                       -->  from here on it is the shim

Instead of READY there may come NO with a reason, or the end of the connection; then, and when nobody answers
in time, the launcher forks the shim itself. A child that is not told to go on exits, and has touched nothing.

The zygote serves one installation: the socket's place is named by the interpreter and by the directories that
modules come from. Import tier 0: the launcher imports this.
"""

from __future__ import annotations

import _socket
import os
import sys

from kata_runtime.identity import digest
from kata_runtime.shim.setup import FIELDS
from kata_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOCOL = f"kata-zygote 1 {VERSION}".encode()
ROOT = "/run/kata-zygote"
"""Root's alone; below it a directory for each installation, with its socket."""

VARIABLE = "KATA_ZYGOTE"
"""Of containerd's environment: "off", or the path of the socket to ask at instead."""
OFF = "off"

START, STATUS, STOP = "start", "status", "stop"
READY, GO, NO = b"ready ", b"go", b"no "

PATIENCE = 2.0
"""Seconds that one answer may take. A launcher that waits longer starts its shim itself, which takes less."""

MAX_MESSAGE = 192 << 10
"""Bytes; the kernel takes no longer ones of a socket with its default buffer."""


class MalformedRequestError(ValueError):
    """A message that no launcher of this installation sends."""


class RefusedError(Exception):
    """There is no shim from the zygote, for this reason."""


class Request:
    """What the launcher wants a shim for.

    shim: the fields of `Setup`. command: the launcher's whole command line, of which the last
    `words` are the program's own. environment: NAME=value.
    """

    __slots__ = ("command", "environment", "shim", "words")

    def __init__(
        self, shim: dict[str, str], command: Sequence[bytes], words: int, environment: Sequence[bytes]
    ) -> None:
        self.shim = shim
        self.command = list(command)
        self.words = words
        self.environment = list(environment)


def installation() -> str:
    """The digest that names this installation's zygote: its interpreter, and where modules come from."""
    executable = os.path.realpath(sys.executable)
    parts = (executable, sys.prefix, sys.getfilesystemencoding(), *sys.path)
    return digest("\0".join(parts).encode("utf-8", "surrogateescape"))


def socket_path() -> str:
    """Where the zygote of this installation is asked."""
    return os.path.join(ROOT, installation()[:32], "socket")


def place() -> str:
    """Where to ask: what the environment says, or `socket_path`."""
    return os.environ.get(VARIABLE) or socket_path()


def encode(action: str, request: Request | None = None) -> bytes:
    """One message: fields that end with a zero, of which none can have one inside."""
    head = [PROTOCOL, installation().encode(), action.encode()]
    if request is not None:
        head += [os.fsencode(request.shim[name]) for name in FIELDS]
        head += [str(number).encode() for number in (request.words, len(request.command))]
        head += [*request.command, *request.environment]
    return b"\0".join(head)


def decode(message: bytes) -> tuple[str, Request | None]:
    """The action of a message, and the request of START.

    Raises:
        MalformedRequestError: it is of another version or installation, or no message at all.
    """
    fields = message.split(b"\0")
    if fields[:2] != [PROTOCOL, installation().encode()]:
        raise MalformedRequestError("the launcher is of another version or installation")
    action = fields[2].decode("ascii", "replace") if len(fields) > 2 else ""
    if action != START:
        return action, None
    count = len(FIELDS)
    shim, numbers, rest = fields[3 : 3 + count], fields[3 + count : 5 + count], fields[5 + count :]
    if len(numbers) != 2 or not all(number.isdigit() and len(number) < 7 for number in numbers):
        raise MalformedRequestError("the launcher's message is incomplete")
    words, length = map(int, numbers)
    command, environment = rest[:length], rest[length:]
    if not 0 < words <= len(command) == length or not all(b"=" in pair[1:] for pair in environment):
        raise MalformedRequestError("the launcher's message is incomplete")
    named = dict(zip(FIELDS, map(os.fsdecode, shim), strict=True))
    return action, Request(named, command, words, environment)


class Offer:
    """A process that waits to be the shim. pid: its process id."""

    __slots__ = ("_connection", "pid")

    def __init__(self, connection: _socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid

    def accept(self) -> None:
        """Let it be the shim. Raises RefusedError: it is no more."""
        try:
            self._connection.send(GO)
        except OSError as error:
            raise RefusedError(f"its child did not wait: {error.strerror}") from None


def ask(shim: dict[str, str], listener: int) -> Offer:
    """Ask for a process that will be this shim.

    listener: descriptor of its socket. The working directory is the shim's, too.

    Raises:
        RefusedError: there is no zygote, or it gives none; nothing has happened.
    """
    path = place()
    if path == OFF:
        raise RefusedError(f"{VARIABLE} is {OFF}")
    environment = [name + b"=" + value for name, value in os.environb.items()]
    command = [os.fsencode(word) for word in sys.orig_argv]
    message = encode(START, Request(shim, command, len(sys.argv), environment))
    if len(message) > MAX_MESSAGE:
        raise RefusedError(f"its message would have {len(message)} bytes: the environment is too large")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(path)
        return Offer(connection, _converse(connection, message, listener))
    except OSError as error:
        connection.close()
        raise RefusedError(f"{path}: {error.strerror or error}") from None
    except RefusedError:
        connection.close()
        raise


def _converse(connection: _socket.socket, message: bytes, listener: int) -> int:
    """Send the request; return the process id of what will be the shim. Raises RefusedError, OSError."""
    # Whoever answers gets the shim's socket, and is it.
    if any(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[4:8]):
        raise RefusedError("its socket is not root's")
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        passed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (directory, listener))
        connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
    finally:
        os.close(directory)
    answer = connection.recv(4096)
    pid = answer.removeprefix(READY)
    if pid == answer or not pid.isdigit():
        raise RefusedError(answer.removeprefix(NO).decode("utf-8", "replace") or "it has gone")
    return int(pid)
