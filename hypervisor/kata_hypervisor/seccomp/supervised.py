"""A command that runs under a filter, with this process answering the calls that the filter asks about.

The filter is put on between fork and exec; it is inherited by every thread and process that the command
starts, whose calls arrive here too. The child cannot pass its listener on, because its next call may wait for
an answer already: it is taken out of the child with pidfd_getfd(2) (Linux 5.6). Until that is done the child
waits in a call that no other program makes, which instructions before the filter's own turn into a question.

While it runs, no process of the command can install a filter with a listener of its own (EBUSY), and none can
gain privileges through set-user-id or file capabilities (NO_NEW_PRIVS). When this process ends, the command
is killed: without an answer its calls would fail with ENOSYS.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

from kata_hypervisor import libc
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.seccomp import actions, bpf, notification, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.notification import Call

_LISTENER = "anon_inode:seccomp notify"
_LOOK_AGAIN = 0.0005
_EXEC_FAILED = 127
_MAX_SEEN = 1024
_PASSED_ON = (signal.SIGINT, signal.SIGTERM)

_SIGNAL = 0x6B617461

Answer = Callable[[int, Call], None]


class SupervisedCommand:
    """A command under a filter. Use as a context; leaving it kills what is left of the command."""

    def __init__(self, command: Sequence[str], code: bytes) -> None:
        """command: the program, looked up on PATH, and its arguments. code: the filter.

        Raises:
            LaunchError: there is no such program.
            LookupError: this architecture has no table of calls.
        """
        self._program = shutil.which(command[0]) if command else None
        if self._program is None:
            raise LaunchError(f"cannot run {' '.join(command) or 'nothing'}: there is no such program")
        self._command = list(command)
        numbers = syscalls.numbers(syscalls.native())
        self._signal_call = numbers["getppid"]
        self._executions = (numbers["execve"], numbers["execveat"])
        self._code = _signal_check(self._signal_call) + code
        self._processes: dict[int, int] = {}
        self._seen: set[int] = set()
        self._interrupted = 0
        self._executed = False
        self.listener = -1
        self.pid = -1
        self.status: int | None = None

    def __enter__(self) -> SupervisedCommand:
        """Start it. Raises LaunchError where the filter cannot be put on it."""
        self._failure, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(write)
        os.close(write)
        try:
            self._process = os.pidfd_open(self.pid)
            self.listener = self._take_listener()
        except BaseException:
            self.__exit__()
            raise
        notification.wake_synchronously(self.listener)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        for fd in (self.listener, self._failure, self._process, *self._processes.values()):
            if fd >= 0:
                os.close(fd)
        self._processes.clear()

    def _become(self, failure: int) -> None:
        """In the child: put the filter on and run the program. Does not return."""
        try:
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            libc.die_with_parent(signal.SIGKILL)
            kernel.install(self._code, all_threads=False, listener=True)
            libc.call(self._signal_call, (_SIGNAL, 0, 0, 0, 0, 0))
            assert self._program is not None
            os.execv(self._program, self._command)
        except BaseException as error:  # noqa: BLE001 - of a child before exec: its parent raises it
            os.write(failure, str(error).encode())
        finally:
            os._exit(_EXEC_FAILED)

    def _take_listener(self) -> int:
        """Wait for the child's listener to appear, and duplicate it.

        Raises:
            LaunchError: the child ended without one.
        """
        while True:
            for name in os.listdir(f"/proc/{self.pid}/fd"):
                if self._is_listener(name):
                    return self._duplicate(int(name))
            if select.select([self._failure], [], [], 0)[0]:
                raise LaunchError(f"cannot run {self._command[0]} under a filter: {self._report_fatal()}")
            time.sleep(_LOOK_AGAIN)

    def _is_listener(self, name: str) -> bool:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{name}") == _LISTENER
        except FileNotFoundError:
            return False

    def _duplicate(self, fd: int) -> int:
        try:
            return libc.copy_descriptor(self._process, fd)
        except OSError as error:
            raise LaunchError(
                f"cannot supervise {self._command[0]}: pidfd_getfd: {error.strerror}"
            ) from error

    def _report_fatal(self) -> str:
        return os.read(self._failure, 4096).decode(errors="replace") or "it ended at once"

    def run(self, answer: Answer) -> int:
        """Hand every call to `answer`, which must answer it, until all processes of the command have ended.

        answer: called with the listener and the call. SIGTERM is passed on to the command; so is SIGINT by a
        terminal. When the command itself has ended, or at the second of them, what is left is killed.

        Returns the command's exit status, 128 + number if a signal ended it.

        Raises:
            LaunchError: the program could not be executed.
        """
        awake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        previous = {number: signal.signal(number, self._interrupt) for number in _PASSED_ON}
        for number in _PASSED_ON:
            signal.siginterrupt(number, False)
        previous_fd = signal.set_wakeup_fd(wake)
        try:
            self._serve(answer, awake)
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(awake)
            os.close(wake)
        status = self.wait()
        if status == _EXEC_FAILED and select.select([self._failure], [], [], 0)[0]:
            message = os.read(self._failure, 4096).decode(errors="replace")
            if message:
                raise LaunchError(f"cannot run {self._command[0]}: {message}")
        return status

    def _serve(self, answer: Answer, awake: int) -> None:
        poll = select.poll()
        for fd in (self.listener, self._process, awake):
            poll.register(fd, select.POLLIN)
        while True:
            events = dict(poll.poll())
            if events.get(self.listener, 0) & select.POLLIN:
                call = notification.receive(self.listener)
                if call is not None:
                    self._dispatch(call, answer)
            elif self.listener in events and self.status is not None:
                return
            if awake in events:
                os.read(awake, 64)
            if self._process in events:
                poll.unregister(self._process)
                self.wait()
                if self._interrupted:
                    self.kill()

    def _dispatch(self, call: Call, answer: Answer) -> None:
        """Answer what comes of starting the command; hand on the rest."""
        if call.tid == self.pid and not self.executed and call.number not in self._executions:
            notification.let_through(self.listener, call)
            return
        self._remember(call)
        answer(self.listener, call)

    @property
    def executed(self) -> bool:
        """Whether the child is the command by now: the pipe for its failure closes when it is."""
        if not self._executed:
            poll = select.poll()
            poll.register(self._failure, 0)
            self._executed = bool(poll.poll(0))
        return self._executed

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self._interrupted += 1
        if self.status is not None or self._interrupted > 1:
            self.kill()
        elif number == signal.SIGTERM:
            signal.pidfd_send_signal(self._process, number)

    def _remember(self, call: Call) -> None:
        """Keep a handle on the process that a call comes from, so that none outlives this one."""
        if call.tid in self._seen:
            return
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add(call.tid)
        pid = process_of(call.tid)
        if pid is None or pid in self._processes or pid == self.pid:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        if notification.is_waiting(self.listener, call):
            self._processes[pid] = handle
        else:
            os.close(handle)
        if len(self._processes) % 64 == 0:
            self._forget_ended()

    def _forget_ended(self) -> None:
        poll = select.poll()
        for handle in self._processes.values():
            poll.register(handle, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(0)}
        for pid, handle in list(self._processes.items()):
            if handle in ended:
                os.close(self._processes.pop(pid))

    def wait(self) -> int:
        """Wait for the command itself; its exit status, 128 + number if a signal ended it."""
        if self.status is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.status = code if code >= 0 else 128 - code
        return self.status

    def kill(self) -> None:
        """Kill every process of the command that is still there."""
        handles = list(self._processes.values())
        if self.status is None and self.pid > 0:
            handles.append(self._process)
        for handle in handles:
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _signal_check(number: int) -> bytes:
    """Instructions, to stand before a filter's, that ask about this call where its argument is _SIGNAL."""
    first_argument = 16
    instructions = (
        (bpf.LD | bpf.ABS, 0, 0, 0),
        (bpf.JMP | bpf.JEQ | bpf.K, 0, 3, number),
        (bpf.LD | bpf.ABS, 0, 0, first_argument),
        (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, _SIGNAL),
        (bpf.RET | bpf.K, 0, 0, actions.NOTIFY),
    )
    return bpf.encode(instructions)


def process_of(tid: int) -> int | None:
    """The process that a thread belongs to; None when it has ended."""
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            return next(int(line[5:]) for line in file if line.startswith("Tgid:"))
    except (FileNotFoundError, ProcessLookupError):
        return None
