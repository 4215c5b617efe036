"""From a fork of the zygote to the shim of one pod: all that was the zygote's goes, all is the launcher's.

What the launcher says is read here and not in the zygote, in which nothing of any pod ever is.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import random
import socket
import sys

from kata_runtime import syscalls
from kata_runtime.shim import daemon, zygote_call
from kata_runtime.shim.setup import Setup
from kata_runtime.zygote import launcher_facts
from kata_runtime.zygote.errors import NotServedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_runtime.shim.zygote_call import Request
    from kata_runtime.zygote.launcher_facts import Launcher

_PASSED = 2


def fork(launcher: Launcher, connection: socket.socket, disown: Callable[[], None]) -> None:
    """Fork what is to become a shim, and be its parent for a moment only: whoever adopts orphans is it then.

    launcher: who has connected. disown: closes, in the child, what only the zygote may have open.

    Raises OSError: the kernel makes no process.
    """
    zygote = os.getpid()
    if first := os.fork():
        os.waitpid(first, 0)
        return
    status = 1
    try:
        status = 0 if os.fork() else _be_shim(launcher, connection, disown, zygote)
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher can do without us
        refuse(connection, error)
    finally:
        os._exit(status)


def refuse(connection: socket.socket, error: Exception) -> None:
    """Tell the launcher, and the zygote's log, why it gets no shim."""
    known = isinstance(error, NotServedError | zygote_call.MalformedRequestError)
    reason = str(error) if known else f"the zygote failed: {error!r}"
    log(f"a launcher starts without it: {reason}")
    with contextlib.suppress(OSError):
        # What is left unread when a socket is closed would take the answer's place (ECONNRESET).
        connection.recv(1, socket.MSG_DONTWAIT)
    send(connection, zygote_call.NO + reason.encode("utf-8", "replace")[:1000])


def log(line: str) -> None:
    """A line for the service's log, if anybody keeps one."""
    with contextlib.suppress(OSError):
        os.write(2, f"kata-zygote: {line}\n".encode("utf-8", "replace"))


def send(connection: socket.socket, answer: bytes) -> None:
    """Answer, if who asked is still there."""
    with contextlib.suppress(OSError):
        connection.send(answer, socket.MSG_NOSIGNAL)


def _be_shim(launcher: Launcher, connection: socket.socket, disown: Callable[[], None], zygote: int) -> int:
    """Answer, and be the shim when the launcher says so; otherwise return, and have touched nothing."""
    disown()
    request, directory, listener = _receive(connection)
    if (difference := launcher.find_difference(request.environment)) is not None:
        raise NotServedError(difference)
    _take_over(launcher, request, directory)
    setup = Setup(
        request.shim,
        bundle=os.getcwd(),
        listener_fd=listener,
        foreground=False,
        origin=f"forked by the zygote, process {zygote}",
    )
    connection.send(zygote_call.READY + str(os.getpid()).encode())
    told = connection.recv(len(zygote_call.GO))
    connection.close()
    if told != zygote_call.GO:
        return 1
    daemon.run(setup)
    return 0


def _receive(connection: socket.socket) -> tuple[Request, int, int]:
    """The launcher's request, and descriptors of the bundle and of the shim's socket."""
    passed = array.array("i")
    size = socket.CMSG_SPACE(_PASSED * passed.itemsize)
    message, ancillary, flags, _ = connection.recvmsg(zygote_call.MAX_MESSAGE, size, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise NotServedError("the launcher's message is too long")
    if len(passed) != _PASSED:
        raise NotServedError(f"the launcher has sent {len(passed)} descriptors, and not {_PASSED}")
    _, request = zygote_call.decode(message)
    if request is None:
        raise NotServedError("the launcher has asked for nothing")
    return request, passed[0], passed[1]


def _take_over(launcher: Launcher, request: Request, directory: int) -> None:
    launcher.take_over()
    launcher_facts.take_environment(request.environment)
    syscalls.set_command_line(request.command, request.environment)
    words = [os.fsdecode(word) for word in request.command]
    sys.orig_argv[:] = words
    sys.argv[:] = words[-request.words :]
    os.fchdir(directory)
    os.close(directory)
    random.seed()
    gc.enable()
