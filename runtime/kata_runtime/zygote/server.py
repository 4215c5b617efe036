"""The zygote's process: it waits for launchers, and forks a shim for each, until it begins anew.

It begins anew, by executing its program again on the same socket, when its code has changed on disk, after a
number of forks, and after a time with at least one: its children share its address layout. Meanwhile
launchers wait in the socket's backlog, or start without it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import stat
import struct
import sys
import time

from kata_runtime import syscalls
from kata_runtime.shim import zygote_call
from kata_runtime.version import VERSION
from kata_runtime.zygote import child, loading
from kata_runtime.zygote.errors import NotServedError
from kata_runtime.zygote.launcher_facts import Launcher

PLACE = "place"
ACTIONS = (zygote_call.STATUS, zygote_call.STOP, PLACE)
COULD_NOT_RUN, NOBODY = 2, 3

BACKLOG = 128
MAX_FORKS = 256
MAX_AGE = 3600.0
"""Forks, and seconds since its start, after which a zygote begins anew."""
LOOK = 60.0
"""Seconds between two looks at whether its code has changed: nothing waits for it."""

MAX_CONNECTIONS = 64
_FIRST_PASSED = 3
"""The descriptor at which systemd passes sockets (sd_listen_fds(3))."""
_OWN = "kata-zygote-own"
"""The name of a socket that this program has made, which it passes to itself."""
_SO_PEERPIDFD = 77


def main() -> int:
    """Entry point of kata-zygote; returns the exit status.

    Without an argument it serves; with "status" or "stop" it asks who does, and "place" says where.
    """
    words = sys.argv[1:]
    if words and (len(words) > 1 or words[0] not in ACTIONS):
        sys.stderr.write(f"usage: kata-zygote [{' | '.join(ACTIONS)}]\n")
        return COULD_NOT_RUN
    if words == [PLACE]:
        print(zygote_call.socket_path())
        return 0
    if os.geteuid() != 0:
        child.log("it needs root: it forks the shims of containers")
        return COULD_NOT_RUN
    return _ask(words[0]) if words else _serve()


def _ask(action: str) -> int:
    """Print the answer of the zygote of this installation, as JSON; 1 when there is none."""
    path = zygote_call.place()
    try:
        with _connect(path) as connection:
            connection.send(zygote_call.encode(action))
            answer = connection.recv(zygote_call.MAX_MESSAGE).decode("utf-8", "replace")
    except OSError as error:
        sys.stderr.write(f"no zygote serves this installation: {path}: {error.strerror or error}\n")
        return NOBODY
    if not answer.startswith("{"):
        sys.stderr.write(f"the zygote at {path} says {answer or 'nothing'}\n")
        return NOBODY
    print(answer)
    return 0


def _serve() -> int:
    # What was installed a moment ago is not taken for what changes while it is imported.
    time.sleep(loading.CLOCK_STEP)
    started = loading.now()
    try:
        listener, own = _inherited_socket() or (_make_socket(zygote_call.socket_path()), True)
    except OSError as error:
        child.log(f"it has no socket: {error.filename}: {error.strerror}")
        return COULD_NOT_RUN
    os.chdir("/")
    syscalls.set_name("kata-zygote")
    loading.load(os.environ)
    return Server(listener, loading.Code(started), own=own).serve()


def _inherited_socket() -> tuple[socket.socket, bool] | None:
    """The socket that systemd or this program has passed (sd_listen_fds(3)), and whether this one made it."""
    passed = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if passed["LISTEN_PID"] != str(os.getpid()) or passed["LISTEN_FDS"] != "1":
        return None
    os.set_inheritable(_FIRST_PASSED, False)
    return socket.socket(fileno=_FIRST_PASSED), passed["LISTEN_FDNAMES"] == _OWN


def _make_socket(path: str) -> socket.socket:
    """Make the socket in directories that are root's alone. Raises OSError."""
    for directory in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path)):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it has to be a directory of root's with mode 0700", directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _is_served(path):
        raise OSError(errno.EADDRINUSE, "a zygote serves it already", path)
    if os.path.lexists(path):
        os.unlink(path)
    listener.bind(path)
    listener.listen(BACKLOG)
    return listener


def _connect(path: str) -> socket.socket:
    """Connect to a zygote. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(zygote_call.PATIENCE)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _is_served(path: str) -> bool:
    try:
        _connect(path).close()
    except OSError:
        return False
    return True


class Server:
    """Serves launchers. own: whether the socket is to go with this process."""

    def __init__(self, listener: socket.socket, code: loading.Code, *, own: bool) -> None:
        self._listener = listener
        self._code = code
        self._own = own
        self._connections: dict[int, socket.socket] = {}
        self._started = time.monotonic()
        self._forks = 0
        self._refusals = 0
        self._changed: str | None = None
        self._stopped = False

    def serve(self) -> int:
        """Serve until it is told to stop; returns the exit status."""
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._stopped:
            ready = poll.poll(LOOK * 1e3)
            if not ready:
                self._changed = self._code.find_change()
            for number, _ in ready:
                if number == self._listener.fileno():
                    self._accept(poll)
                else:
                    poll.unregister(number)
                    with self._connections.pop(number) as connection:
                        self._answer(connection)
            if not self._connections and (why := self._is_due()):
                self._begin_anew(why)
        if self._own:
            os.unlink(self._listener.getsockname())
        return 0

    def _accept(self, poll: select.poll) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone
        if len(self._connections) >= MAX_CONNECTIONS:
            connection.close()  # launchers say at once what they want; who does not is none
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)

    def _answer(self, connection: socket.socket) -> None:
        """Do what one message asks for. No fault in here ends the zygote."""
        try:
            connection.setblocking(True)
            self._do(connection)
        except Exception as error:  # noqa: BLE001 - the next launcher is another
            # A launcher of another version comes after an upgrade.
            self._changed = self._code.find_change()
            self._refusals += 1
            child.refuse(connection, error)

    def _do(self, connection: socket.socket) -> None:
        with Launcher(*_peer(connection)) as launcher:
            head = zygote_call.encode(zygote_call.START) + b"\0"
            # The rest is for the child alone.
            if connection.recv(len(head), socket.MSG_PEEK) == head:
                self._fork(launcher, connection)
                return
        message = connection.recv(zygote_call.MAX_MESSAGE)
        if not message:
            return  # who connected has gone
        action, _ = zygote_call.decode(message)
        if action == zygote_call.STATUS:
            child.send(connection, json.dumps(self.report()).encode())
        elif action == zygote_call.STOP:
            self._stopped = True
            answer = {"pid": os.getpid(), "socket_stays": not self._own}
            child.send(connection, json.dumps(answer).encode())
        else:
            raise NotServedError(f"it knows no action {action[:20]!r}")

    def _fork(self, launcher: Launcher, connection: socket.socket) -> None:
        self._changed = self._code.find_change()
        if self._changed is not None:
            raise NotServedError(f"{self._changed} is not what the zygote has loaded; it begins anew")
        child.fork(launcher, connection, self._disown)
        self._forks += 1

    def _disown(self) -> None:
        """In a child: close what is the zygote's."""
        self._listener.close()
        for connection in self._connections.values():
            connection.close()

    def report(self) -> dict[str, object]:
        """What `kata-ctl zygote status` shows."""
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "installation": zygote_call.installation(),
            "socket": self._listener.getsockname(),
            "socket_is_systemds": not self._own,
            "seconds": round(time.monotonic() - self._started, 1),
            "forks": self._forks,
            "refusals": self._refusals,
            "files": len(self._code),
            "begins_anew": self._is_due() or "",
        }

    def _is_due(self) -> str:
        """Why it is time to begin anew; empty when it is not."""
        if self._forks >= MAX_FORKS:
            return f"it has forked {self._forks} shims"
        if self._forks and time.monotonic() - self._started >= MAX_AGE:
            return f"it is {MAX_AGE:.0f} seconds old"
        return f"{self._changed} has changed" if self._changed else ""

    def _begin_anew(self, why: str) -> None:
        child.log(f"it begins anew: {why}")
        listener = os.dup(self._listener.fileno())
        os.dup2(listener, _FIRST_PASSED, inheritable=True)
        environment = {
            **_first_environment(),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": "1",
            "LISTEN_FDNAMES": _OWN if self._own else "",
        }
        os.execve(sys.executable, sys.orig_argv, environment)


def _first_environment() -> dict[str, str]:
    """What it was executed with. What Python adds to it for the locale (PEP 538) is not handed on."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0") if pair)
        return {name: value for name, _, value in pairs}


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The process that connected, and a pidfd of it. Raises NotServedError: it is not root's."""
    pid, uid, _ = struct.unpack("iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != 0:
        raise NotServedError(f"user {uid} may not ask for it")
    try:
        return pid, connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # before Linux 6.5
        return pid, os.pidfd_open(pid)


if __name__ == "__main__":
    sys.exit(main())
