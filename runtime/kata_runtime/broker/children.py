"""The children of one broker: started, signalled, supervised and reaped."""

from __future__ import annotations

import base64
import errno
import os
import signal
import stat
import time

from kata_hypervisor.seccomp import confinement
from kata_runtime.broker import confined_child, device_rules, processes, spawn
from kata_runtime.broker.child_filter import ChildFilterSupervisor
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.event_loop import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from kata_runtime.broker.device_rules import DeviceRule
    from kata_runtime.broker.event_loop import EventLoop
    from kata_runtime.broker.log_sink import LogSink
    from kata_runtime.broker.messages import Message
    from kata_runtime.broker.pod_identity import PodIdentity
    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.broker.vmm_directory import VmmDirectory

_PAUSE = 0.001

MAX_CHILDREN = 64
"""Processes that one broker has at a time."""


class Children:
    """The processes that one broker has started, and those that these have left behind.

    shim: its process id. identity: the pod's user and PID namespace. directory: of its VMM. notify: sends a
    message to the shim without waiting.
    """

    def __init__(
        self,
        shim: int,
        identity: PodIdentity,
        directory: VmmDirectory,
        journal: RollbackJournal,
        loop: EventLoop,
        log_sink: LogSink,
        notify: Callable[[Message], None],
    ) -> None:
        self._shim = shim
        self._identity = identity
        self._directory = directory
        self._journal = journal
        self._loop = loop
        self._log_sink = log_sink
        self._notify = notify
        # Of devices that children have been given, and may open again.
        self.devices: list[DeviceRule] = []
        # By process id: the number of the child's entry in the journal.
        self._entries: dict[int, int] = {}
        self._filters: dict[int, ChildFilterSupervisor] = {}
        self._roles: dict[int, str] = {}
        self._serving: set[int] = set()

    @property
    def roles(self) -> dict[int, str]:
        """The roles of the children that run, by process id."""
        return dict(self._roles)

    @property
    def serving(self) -> list[int]:
        """Process ids of the children that serve the shared directory."""
        return list(self._serving)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that run."""
        return list(self._entries)

    def count(self, name: str) -> int:
        """How many of the children that run were started under this name."""
        entries = self._journal.entries
        return sum(entries[number].get("name") == name for number in self._entries.values())

    def start(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None = None,
        *,
        gate: int | None = None,
        seccomp: Mapping[str, Any] | None = None,
        privileges: Mapping[str, Any] | None = None,
        network: int | None = None,
    ) -> int:
        """Start a child and return its pid; see `spawn.spawn`.

        seccomp: the fields of a ChildFilter. privileges: those of a Privileges, which confine it.
        """
        if len(self._entries) >= MAX_CHILDREN:
            raise RequestRefusedError(
                f"cannot start {name}: the sandbox has {MAX_CHILDREN} helper processes, and may have no more"
            )
        number = 0

        def record(pid: int, start: int) -> None:
            nonlocal number
            number = self._journal.push("process", pid=pid, start=start, name=name)

        supervised = seccomp is not None and bool(seccomp["loading"])
        supervisor = ChildFilterSupervisor(name, seccomp) if seccomp is not None and supervised else None
        code = base64.b64decode(seccomp["code"]) if seccomp is not None else b""
        try:
            confined: dict[str, Any] = {}
            if privileges is not None:
                confined = {"root": self._plan(name, argv[0], fds, privileges), "fork": self._identity.fork}
                network = network if privileges["network"] else None
            pid = spawn.spawn(
                name,
                argv,
                fds,
                environment,
                record,
                gate=gate,
                code=code,
                supervisor=supervisor,
                network=network,
                **confined,
            )
        except BaseException:
            self._journal.drop(number)
            raise
        self._entries[pid] = number
        self._roles[pid] = name
        if privileges is not None and privileges["serves"] is not None:
            self._serving.add(pid)
        self.devices += device_rules.given(fds.values(), seccomp or {}, privileges or {})
        if supervisor is not None:
            self._filters[pid] = supervisor
            self._loop.add(supervisor.listener, lambda events: self._answer_filter(pid, supervisor, events))
        return pid

    def _plan(
        self, name: str, path: str, fds: Mapping[int, int], privileges: Mapping[str, Any]
    ) -> confined_child.Plan:
        """What a child is confined to, whose user gets the files that it may write."""
        spawn.check_executable(name, path)
        user, place = self._identity.user, self._identity.place
        root = confined_child.plan(name, path, privileges, user, place, self._directory)
        _give_away(name, [fds[number] for number in privileges["written"]], user)
        return root

    def _answer_filter(self, pid: int, supervisor: ChildFilterSupervisor, events: int) -> None:
        """A child asks for what its filter does not simply allow, or has exited."""
        if not events & READABLE:
            self._loop.remove(supervisor.listener)
            supervisor.close()
            if self._filters.get(pid) is supervisor:
                del self._filters[pid]
        elif (sentence := supervisor.answer()) is not None and pid in self._entries:
            os.kill(pid, signal.SIGKILL)
            self._log_sink.write("error", sentence)
            self._notify({"refused": pid, "sentence": sentence})

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a child; nothing when it has exited, or when the process is none."""
        # Not reaped, so the pid is still this child's.
        if pid in self._entries:
            os.kill(pid, number)

    def end_loading(self, pid: int) -> None:
        """End what a child's filter allows only while it loads.

        Raises:
            ProcessLookupError: it has exited, or has no filter of ours.
        """
        if pid not in self._filters:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has exited, or has no filter of ours")
        self._filters[pid].end_loading()

    def threads(self, pid: int) -> list[list[Any]]:
        """What the kernel reports of each thread of a child or the shim, as a ThreadConfinement's fields.

        Raises:
            ProcessLookupError: it has exited, or is neither.
        """
        if pid not in self._entries and pid != self._shim:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has exited")
        found = confinement.read_threads(pid)
        return [[t.tid, t.name, t.mode, t.filters, t.no_new_privs] for t in found]

    def filters_effective(self, pid: int, tid: int, beyond: int) -> tuple[bool, str]:
        """Whether the filters on a thread of a child forbid anything, and why that is unknown, or "".

        Raises:
            ProcessLookupError: it has exited, or has no such thread.
        """
        if pid not in self._entries or not os.path.exists(f"/proc/{pid}/task/{tid}"):
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has exited, or has no thread {tid}")
        from kata_hypervisor.errors import SealError
        from kata_hypervisor.seccomp import effectiveness

        try:
            return effectiveness.are_effective(tid, beyond), ""
        except SealError as error:
            return False, str(error)[:1000]

    def reap(self) -> None:
        """Collect every child that has exited, adopted ones too, and report those that were started here."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._roles.pop(pid, None)
            self._serving.discard(pid)
            if (number := self._entries.pop(pid, None)) is not None:
                self._journal.drop(number)
                code = os.waitstatus_to_exitcode(status)
                self._notify({"exited": pid, **({"code": code} if code >= 0 else {"signal": -code})})

    def kill_all(self, spared: Collection[int] = ()) -> None:
        """Kill every child until there is none: what they leave behind becomes our child in turn.

        spared: the pids of those that stay.
        """
        deadline = time.monotonic() + processes.GRACE
        while (pids := set(processes.children()).difference(spared)) and time.monotonic() < deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)  # a zombie takes it too, and no pid is free until we reap it
            time.sleep(_PAUSE)
            self.reap()


def _give_away(name: str, files: Sequence[int], user: int) -> None:
    """Let a user open regular files and pipes, of which these are descriptors. Raises RequestFailedError."""
    for file in files:
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise RequestFailedError(
                f"cannot start {name}: what it is to open again is neither a regular file nor a pipe"
            )
        try:
            os.fchown(file, user, user)
            os.fchmod(file, stat.S_IMODE(mode) & 0o777 | 0o600)
        except OSError as error:
            raise RequestFailedError(
                f"cannot start {name}: cannot give a file to user {user} of its pod: {error.strerror}",
                error.errno or 0,
            ) from None
