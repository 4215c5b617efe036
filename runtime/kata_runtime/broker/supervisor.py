"""Supervision of the sealed shim: each call that its filter refuses waits here for an answer.

"enforce": the call is refused with EPERM, named in containerd's log, and reported to the shim, which ends the
pod with that sentence through its API; whatever it does, it is killed after GRACE. "log": the call is named
and made. The shim needs no working Python for any of this.

What was refused is counted in RECORD in the sandbox's directory, for tools, and the first sentence is kept
in the bundle, from where `shim delete` repeats it when the shim could not report it itself.
"""

from __future__ import annotations

import errno
import json
import os
import time

from kata_hypervisor.seccomp import notification, syscalls
from kata_runtime.broker import processes
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.event_loop import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_hypervisor.seccomp.notification import Call
    from kata_runtime.broker.event_loop import EventLoop
    from kata_runtime.broker.log_sink import LogSink
    from kata_runtime.broker.messages import Message

GRACE = 2.0
"""Seconds that the shim gets to tell containerd why the pod has ended."""

MAX_NAMED = 100
"""Different calls that are named in the log; a shim that makes more of them is counted only."""

RECORD = "seal.json"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class Supervisor:
    """Supervises one shim: nothing to do until `expect`, and then the listener must come in time.

    shim: its process id and start time. directory: descriptor of the sandbox's directory. notify: sends a
    message to the shim without waiting.
    """

    def __init__(
        self,
        shim: tuple[int, int],
        loop: EventLoop,
        log_sink: LogSink,
        directory: int,
        notify: Callable[[Message], None],
    ) -> None:
        self._shim = shim
        self._loop = loop
        self._log_sink = log_sink
        self._directory = directory
        self._notify = notify
        self._listener = -1
        self._policy = ""
        self._enforce = True
        self._deadline: float | None = None
        # Whether the log and the bundle say why the pod must end.
        self._explained = False
        self._calls: dict[str, int] = {}

    def expect(self, policy: str, *, enforce: bool, within: float) -> None:
        """The shim is about to put its filter on.

        policy: its name, for sentences. within: seconds until it hands over the listener, or is killed.
        """
        self._policy = policy
        self._enforce = enforce
        self._deadline = time.monotonic() + within

    def supervise(self, listener: int) -> None:
        """The shim has put its filter on: answer for it from here on. listener: the caller's to close.

        Raises:
            RequestRefusedError: there is a listener already.
        """
        if self._listener >= 0:
            raise RequestRefusedError("supervise: the shim is supervised already")
        self._listener = os.dup(listener)
        self._loop.add(self._listener, self._on_call)
        self._deadline = None
        self._record()

    def _on_call(self, events: int) -> None:
        if not events & READABLE:  # no process is under the filter any more
            self._loop.remove(self._listener)
            return
        sentence = self._answer()
        if sentence is not None:
            self._notify({"violation": sentence})

    def _answer(self) -> str | None:
        """Answer the call that waits, if one does; returns the sentence that ends the pod, the first time."""
        call = notification.receive(self._listener)
        if call is None:
            return None
        name, thread = syscalls.name_of(call.number) or "an unknown call", _thread_name(call.tid)
        if self._enforce:
            notification.refuse(self._listener, call, errno.EPERM)
        else:
            notification.let_through(self._listener, call)
        sentence = self._sentence(call, name, thread)
        if name not in self._calls and len(self._calls) < MAX_NAMED:
            self._log_sink.write("error" if self._enforce else "warning", sentence)
        self._calls[name] = self._calls.get(name, 0) + 1
        self._record()
        if not self._enforce or self._deadline is not None:
            return None
        self._give_grace(sentence)
        return sentence

    def _give_grace(self, sentence: str) -> None:
        self._explained = True
        self._deadline = time.monotonic() + GRACE
        self._log_sink.keep(sentence)

    def let_end(self, sentence: str) -> None:
        """The broker itself was refused a call: say so, and give the shim time to end the pod for it."""
        self._log_sink.write("error", sentence)
        if self._deadline is None:
            self._give_grace(sentence)
            self._notify({"violation": sentence})

    def _sentence(self, call: Call, name: str, thread: str) -> str:
        arguments = ", ".join(f"{value:#x}" for value in call.arguments)
        attempt = (
            f"seccomp: the runtime's process called {name} ({call.number}) on thread {thread} "
            f"(tid {call.tid}), which policy {self._policy} does not allow"
        )
        if not self._enforce:
            return f"{attempt}; it was let through; arguments: {arguments}"
        return (
            f"{attempt}: the call was refused and the pod ended (kata-ctl seccomp show prints the policy; "
            f'shim_seccomp = "log" in [runtime] names all such calls and lets them through); '
            f"arguments: {arguments}"
        )

    def _record(self) -> None:
        mode = "enforce" if self._enforce else "log"
        text = json.dumps({"mode": mode, "policy": self._policy, "calls": self._calls})
        fd = os.open(RECORD + ".new", _WRITE, 0o600, dir_fd=self._directory)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        os.rename(RECORD + ".new", RECORD, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def remaining(self) -> int | None:
        """Milliseconds until the shim is killed, for poll(2); None when it need not be."""
        return None if self._deadline is None else max(0, round((self._deadline - time.monotonic()) * 1e3))

    def enforce_deadline(self) -> None:
        """Kill the shim when its time is over."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        self._deadline = None
        if self._explained:
            self._kill()
        else:
            self.end_pod(
                f"seccomp: the runtime's process made a call that policy {self._policy} refuses "
                "before it could hand over the filter's listener, or was stopped then, and was killed"
            )

    def end_pod(self, sentence: str) -> None:
        """Kill the shim, and say why in the log and, for `shim delete`, in the bundle."""
        self._log_sink.write("error", sentence)
        self._log_sink.keep(sentence)
        self._kill()

    def _kill(self) -> None:
        processes.end(*self._shim, grace=0)


def _thread_name(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
