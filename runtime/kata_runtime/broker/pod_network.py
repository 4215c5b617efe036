"""The pod's network namespace, as the broker has it: opened once, and left as it was found.

The network program runs in it (`kata_runtime.network.program`): for the shim once, before the seal, and for
the broker or the cleanup at the end, when it undoes what its record names.
"""

from __future__ import annotations

import errno
import os
import socket

from kata_runtime.broker import spawn
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.network import namespaces
from kata_runtime.network.command import CHANNEL, NAMESPACE, RECORD, command
from kata_runtime.network.errors import NetworkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.children import Children
    from kata_runtime.broker.rollback import Entry, RollbackJournal

ROLE = "network"
RECORD_NAME = "network.json"
DETACH_TIMEOUT = 10.0
"""Seconds that the network program may take to undo what it attached."""


class PodNetwork:
    """The network namespace of one sandbox.

    directory, path: the sandbox's directory, its descriptor and its path.
    """

    def __init__(self, directory: int, path: str, journal: RollbackJournal, children: Children) -> None:
        self._directory = directory
        self._path = path
        self._journal = journal
        self._children = children
        self._namespace: int | None = None

    @property
    def namespace(self) -> int | None:
        """A descriptor of the pod's namespace, in which the VMM runs; None where it was given none."""
        return self._namespace

    def attach(self, path: str, channel: int) -> int:
        """Start the network program in the namespace at a path, to answer over a channel; return its pid.

        Raises:
            RequestRefusedError: the sandbox has a namespace already.
            RequestFailedError: it is no namespace that a pod can have, or the program cannot be started.
        """
        if self._namespace is not None:
            raise RequestRefusedError("the sandbox has its network namespace already")
        try:
            self._namespace = namespaces.open_pods(path)
            argv = command()
        except NetworkError as error:
            raise RequestFailedError(str(error), errno.EINVAL) from None
        device, inode = namespaces.identity(self._namespace)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        record = os.open(RECORD_NAME, flags, 0o600, dir_fd=self._directory)
        try:
            file = os.path.join(self._path, RECORD_NAME)
            self._journal.push("network", path=file, namespace=path, device=device, inode=inode)
            fds = {CHANNEL: channel, NAMESPACE: self._namespace, RECORD: record}
            return self._children.start(ROLE, argv, fds)
        finally:
            os.close(record)

    def late_interfaces(self) -> list[str]:
        """Interfaces that a client put after Create into the empty namespace that was made for a child.

        None where the sandbox was given a namespace, whose interfaces were attached.
        """
        if self._namespace is not None:
            return []
        ours = os.stat("/proc/self/ns/net").st_ino
        found: set[str] = set()
        for pid in self._children.pids:
            try:
                if os.stat(f"/proc/{pid}/ns/net").st_ino != ours:
                    found.update(_interfaces(pid))
            except OSError:
                continue  # it has exited
        return sorted(found - {"lo"} - namespaces.FALLBACK_DEVICES)

    def close(self) -> None:
        """Let go of the namespace; idempotent."""
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None


def _interfaces(pid: int) -> list[str]:
    """The interfaces of a process's network namespace. Source: proc_pid_net(5), dev. Raises OSError."""
    with open(f"/proc/{pid}/net/dev", encoding="utf-8", errors="replace") as file:
        return [line.partition(":")[0].strip() for line in file.readlines()[2:]]


def detach(entry: Entry) -> None:
    """Undo an entry of the journal: what was attached to a pod's namespace; nothing where that is gone.

    Raises OSError, RequestFailedError.
    """
    try:
        record = os.open(entry["path"], os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if os.fstat(record).st_size:
            _detach(entry, record)
    finally:
        os.close(record)


def _detach(entry: Entry, record: int) -> None:
    try:
        namespace = os.open(entry["namespace"], os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # it has ended, and all that was attached with it
    try:
        if namespaces.identity(namespace) == (entry["device"], entry["inode"]):
            _run_detach(namespace, record)
    finally:
        os.close(namespace)


def _run_detach(namespace: int, record: int) -> None:
    from kata_runtime.network import exchange

    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fds = {CHANNEL: theirs.fileno(), NAMESPACE: namespace, RECORD: record}
            pid = spawn.spawn(ROLE, command(), fds, None, lambda _pid, _start: None)
        ours.settimeout(DETACH_TIMEOUT)
        try:
            exchange.detach(ours)
        except NetworkError as error:
            raise RequestFailedError(str(error)) from None
        finally:
            ours.close()  # the program ends for want of an asker, if it has not answered
            os.waitpid(pid, 0)
