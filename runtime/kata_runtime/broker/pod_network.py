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
from kata_runtime.network import addresses, namespaces
from kata_runtime.network.command import CHANNEL, NAMESPACE, RECORD, command
from kata_runtime.network.errors import NetworkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kata_runtime.broker.children import Children
    from kata_runtime.broker.rollback import Entry, RollbackJournal
    from kata_runtime.network.asking import Request
    from kata_runtime.network.model import Namespace
    from kata_runtime.network.record import Record

    T = TypeVar("T")

ROLE = "network"
RECORD_NAME = "network.json"


class PodNetwork:
    """The network namespace of one sandbox: one that it was given, or one that was made for it.

    directory, path: the sandbox's directory, its descriptor and its path.
    """

    def __init__(self, directory: int, path: str, journal: RollbackJournal, children: Children) -> None:
        self._directory = directory
        self._path = path
        self._journal = journal
        self._children = children
        self._namespace: int | None = None
        self._outside: int | None = None
        self._given: str | None = None
        self._attached: list[str] | None = None

    @property
    def namespace(self) -> int | None:
        """A descriptor of the pod's namespace, in which its init is; None until `learn`."""
        return self._namespace

    @property
    def of_children(self) -> int | None:
        """A descriptor of the namespace in which the VMM runs; None until `learn`."""
        return self._namespace if self._outside is None else self._outside

    @property
    def is_outside(self) -> bool:
        """Whether the VMM runs in the host's network namespace."""
        return self._outside is not None

    def learn(self, path: str | None, *, outside: bool) -> None:
        """Open the namespace at a path, or make one. outside: whether children run in the host's instead.

        Raises:
            RequestRefusedError: the sandbox has a namespace already.
            RequestFailedError: it is no namespace that a pod can have. OSError.
        """
        if self._namespace is not None:
            raise RequestRefusedError("the sandbox has its network namespace already")
        try:
            if outside:
                self._outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._namespace = namespaces.make() if path is None else namespaces.open_pods(path)
        except NetworkError as error:
            raise RequestFailedError(str(error), errno.EINVAL) from None
        self._given = path

    def state(self, inside: int) -> tuple[list[str], bool]:
        """The names of its interfaces, and whether one has an address that is not link-local.

        inside: a process in the namespace. Raises OSError.
        """
        return _interfaces(inside), addresses.are_configured(inside)

    def attach(self, inside: int, channel: int) -> int:
        """Start the network program in the namespace, to answer over a channel; return its pid.

        inside: a process in the namespace.

        Raises:
            RequestRefusedError: there is no namespace yet, or it was attached before.
            RequestFailedError: the program cannot be started.
        """
        if self._namespace is None or self._attached is not None:
            raise RequestRefusedError("the sandbox has no network namespace yet, or it was attached before")
        self._attached = _interfaces(inside)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        record = os.open(RECORD_NAME, flags, 0o600, dir_fd=self._directory)
        try:
            if self._given is not None:  # one of our making goes with its processes, and all that is in it
                device, inode = namespaces.identity(self._namespace)
                file = os.path.join(self._path, RECORD_NAME)
                self._journal.push("network", path=file, namespace=self._given, device=device, inode=inode)
            fds = {CHANNEL: channel, NAMESPACE: self._namespace, RECORD: record}
            return self._children.start(ROLE, command(), fds)
        finally:
            os.close(record)

    def open_tap(self, tap: str, queues: int) -> list[int]:
        """Open a tap of the host's network namespace, which the operator has made, for the machine.

        Raises:
            RequestFailedError: there is none of that name, or it cannot be opened.
        """
        from kata_runtime.network import taps  # which few pods need

        try:
            socket.if_nametoindex(tap)  # else opening makes one
            return taps.open_tap(tap, queues, header=True, new=False)
        except OSError:
            raise RequestFailedError(f"there is no tap {tap} on the host", errno.ENODEV) from None
        except NetworkError as error:
            raise RequestFailedError(str(error), errno.EINVAL) from None

    def late_interfaces(self, inside: int) -> list[str]:
        """Interfaces that a client put into a namespace of our making after its others were attached.

        inside: a process in it. None where the sandbox was given a namespace: it is complete.
        """
        if self._given is not None:
            return []
        known = self._attached or []
        taps = {namespaces.TAP.format(number) for number in range(len(known))}
        return sorted(set(_interfaces(inside)) - {*known} - taps)

    def close(self) -> None:
        """Let go of the namespaces; idempotent."""
        for namespace in (self._namespace, self._outside):
            if namespace is not None:
                os.close(namespace)
        self._namespace = self._outside = None


def _interfaces(inside: int) -> list[str]:
    """The names of a namespace's interfaces, but for those that the kernel makes in every namespace."""
    return [name for name in addresses.interfaces(inside) if name not in {"lo", *namespaces.FALLBACK_DEVICES}]


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
        namespace = os.open(entry["namespace"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return  # it has ended, and all that was attached with it
    try:
        if namespaces.identity(namespace) == (entry["device"], entry["inode"]):
            from kata_runtime.network import asking

            _ask(namespace, record, asking.detach())
    finally:
        os.close(namespace)


def read(directory: str, inside: int) -> tuple[Record, Namespace] | None:
    """What was attached to the namespace of a sandbox, and what it holds now; None where nothing was.

    directory: the sandbox's. inside: a process in the namespace. Raises OSError, RequestFailedError.
    """
    from kata_runtime.network import exchange
    from kata_runtime.network.record import RecordFile

    try:
        record = os.open(os.path.join(directory, RECORD_NAME), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    namespace = -1
    try:
        namespace = os.open(f"/proc/{inside}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        attached = RecordFile(record).load()
        return None if attached is None else (attached, _ask(namespace, record, exchange.dump()))
    finally:
        for descriptor in (record, namespace):
            if descriptor >= 0:
                os.close(descriptor)


def _ask(namespace: int, record: int, request: Request[T]) -> T:
    """Make one request of the network program in a namespace. Raises RequestFailedError."""
    from kata_runtime.network import asking

    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fds = {CHANNEL: theirs.fileno(), NAMESPACE: namespace, RECORD: record}
            pid = spawn.spawn(ROLE, command(), fds, None, lambda _pid, _start: None)
        try:
            return asking.ask(ours, request)  # which ends with the program, however slow the host is
        except NetworkError as error:
            raise RequestFailedError(str(error)) from None
        finally:
            ours.close()  # the program ends for want of an asker, if it has not answered
            os.waitpid(pid, 0)
