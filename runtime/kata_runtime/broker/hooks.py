"""The OCI hooks of a sandbox's first container: learned before the seal, run by a process that holds them.

The runner is forked before the seal, with the rights that the broker has then, and takes the name of a kind
of hook and nothing else: whoever owns the shim or the broker afterwards has no program run that config.json
did not name. Each kind is run once. Containers that come later have no hooks of the host: see `pod/creation`.

`poststop` hooks are due from the moment when hooks were learned. They are kept in a file beside the journal,
and in another one each is written down when it is begun, by the process that becomes it. So each is begun
once, whoever is killed, and when: what was not begun stays in the journal, for the `shim delete` or the sweep
that undoes the sandbox. One that was begun is not begun again, also when it was killed.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket

from kata_runtime.broker import begun_hooks, hook_declaration, hook_kinds, messages, processes
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.hook_kinds import POSTSTOP
from kata_runtime.broker.phase import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.hook_declaration import Declared
    from kata_runtime.broker.log_sink import LogSink
    from kata_runtime.broker.origin import Origin
    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.identity import SandboxIdentity

UNDO = "poststop"
ROLE = "hooks"

RECORD_NAME = "hooks.json"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Hooks:
    """The hooks of one sandbox; none until `learn`. directory, path: the sandbox's directory."""

    def __init__(
        self,
        identity: SandboxIdentity,
        bundle: str,
        directory: int,
        origin: Origin,
        journal: RollbackJournal,
        log_sink: LogSink,
    ) -> None:
        self._identity = identity
        self._bundle = bundle
        self._directory = directory
        self._origin = origin
        self._journal = journal
        self._log_sink = log_sink
        self._left: set[str] = set()
        self._channel: socket.socket | None = None
        self._entry = 0
        # Of poststop hooks: how many there are, and the file in which those that were begun are written down.
        self._due = 0
        self._begun = -1
        # A copy of the end on which the shim reads what became of the poststop hooks.
        self._answer = -1
        self.runner = 0

    @property
    def roles(self) -> dict[int, str]:
        """The role of the process that runs them, by its id; nothing without hooks."""
        return {self.runner: ROLE} if self.runner else {}

    def learn(self) -> list[str]:
        """Read the hooks from the sandbox's bundle and fork their runner; return the kinds that there are.

        Raises:
            RequestRefusedError: they were learned before.
            RequestFailedError: config.json cannot be read, or declares no proper hooks.
        """
        if self._channel is not None:
            raise RequestRefusedError("learn_hooks: the sandbox has its hooks already")
        declared = hook_declaration.read(self._bundle, self._identity.id)
        if not declared["hooks"]:
            return []
        self._left = set(declared["hooks"])
        if POSTSTOP in self._left:
            self._record(declared)
        self._fork_runner(declared)
        return list(declared["hooks"])

    def _record(self, declared: Declared) -> None:
        path = os.path.join(self._identity.directory, RECORD_NAME)
        due = declared["hooks"][POSTSTOP]
        for name in (RECORD_NAME, RECORD_NAME + begun_hooks.SUFFIX):
            try:
                os.unlink(name, dir_fd=self._directory)  # an earlier sandbox's, which was undone
            except FileNotFoundError:
                continue
        file = os.open(RECORD_NAME, _WRITE, 0o600, dir_fd=self._directory)
        with open(file, "w", encoding="utf-8") as stream:
            json.dump({**declared, "hooks": {POSTSTOP: due}}, stream)
        self._begun = begun_hooks.open_beside(RECORD_NAME, self._directory)
        self._due = len(due)
        self._entry = self._journal.push(UNDO, path=path)

    def _fork_runner(self, declared: Declared) -> None:
        from kata_runtime.broker import hook_runner

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            hook_runner.live(theirs, declared, self._origin, self._begun)
        theirs.close()
        self._journal.push("process", pid=pid, start=processes.start_time(pid), name=ROLE)
        self._channel, self.runner = ours, pid

    def run(self, kind: str, phase: Phase, pid: int, network: int | None) -> int:
        """Begin to run all hooks of a kind; return a pipe on which the runner answers, see `hook_runner`.

        pid: of the pod, for the state that hooks read; 0 for none. network: its network namespace.

        Raises:
            RequestRefusedError: there are none of this kind, they were run, or it is too late for them.
        """
        if phase is Phase.SEALED and kind not in hook_kinds.LATE:
            raise RequestRefusedError(f"run_hooks: {kind} hooks are refused {phase.value}")
        if kind not in self._left or self._channel is None:
            raise RequestRefusedError(f"run_hooks: no {kind} hooks are left to run")
        self._left.discard(kind)
        if kind == POSTSTOP:
            pid = 0  # the container has no process any more
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            packet = messages.encode({"kind": kind, "pid": pid})
            messages.send(self._channel, packet, [write, *([] if network is None else [network])])
        except OSError as error:
            os.close(read)
            raise RequestFailedError(
                f"cannot run the {kind} hooks: the process that runs them has exited ({error.strerror})",
                errno.ESRCH,
            ) from None
        finally:
            os.close(write)
        os.set_blocking(read, False)
        if kind == POSTSTOP:
            self._answer = os.dup(read)
        return read

    def _wait_for_poststop(self) -> None:
        """Let begun poststop hooks end: they release what the host has given to the pod.

        A hook is killed when nobody waits for its answer any more, and an owned shim waits for nothing.
        """
        if self._answer >= 0:
            waiter = select.poll()
            waiter.register(self._answer, 0)  # a hang-up is always reported
            waiter.poll()
            os.close(self._answer)
            self._answer = -1

    def finish(self) -> list[str]:
        """Run poststop hooks that are due, and end the runner; the pod's other processes have exited.

        Returns a line where some are left to be run, because the runner was killed: they stay in the journal.
        """
        if POSTSTOP in self._left:
            try:
                answer = self.run(POSTSTOP, Phase.SEALED, 0, None)
            except RequestFailedError as error:
                self._log_sink.write("warning", str(error))
            else:
                os.set_blocking(answer, True)
                with open(answer, "rb") as stream:
                    for line in hook_declaration.failures(stream.read(), POSTSTOP):
                        self._log_sink.write("warning", line)
        self._wait_for_poststop()
        if self._channel is not None:
            self._channel.close()  # for want of which the runner exits
            self._channel = None
        return self._settle()

    def _settle(self) -> list[str]:
        """Take the poststop hooks out of the journal if all were begun; else say that they are left."""
        if not self._due:
            return []
        begun = len(begun_hooks.read(self._begun))
        if begun < self._due:
            return [
                f"{self._due - begun} of {self._due} poststop hooks are left to be run, by shim delete or "
                "kata-ctl cleanup: the process that runs them was killed"
            ]
        self._journal.drop(self._entry)
        self._due = 0
        return []


def run_left(journal: RollbackJournal) -> None:
    """Run the poststop hooks that a dead broker has left; a failure is a warning in containerd's log."""
    for number, entry in list(journal.entries.items()):
        if entry.get("undo") == UNDO:
            _run_recorded(str(entry.get("path")), journal)
            journal.drop(number)


def _run_recorded(path: str, journal: RollbackJournal) -> None:
    from kata_runtime.broker import hook_runner
    from kata_runtime.broker.log_sink import LogSink

    log_sink = LogSink(journal.path("bundle"), str(journal.header.get("sandbox")))
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), encoding="utf-8") as file:
            declared: dict[str, Any] = json.load(file)
        begun = begun_hooks.open_beside(path)
    except (OSError, ValueError) as error:
        log_sink.write("warning", f"cannot run the poststop hooks: {path}: {error}")
        return
    try:
        for line in hook_runner.run_all(declared, POSTSTOP, begun=begun):
            log_sink.write("warning", line)
    finally:
        os.close(begun)
