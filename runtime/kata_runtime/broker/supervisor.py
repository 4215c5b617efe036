"""The broker's watch over the sealed shim: each call that its filter refuses waits here for an answer.

"enforce": the call is refused with EPERM, named in containerd's log, and told to the shim, which ends the pod
with that sentence through its API; whatever it does, it is killed after GRACE. "log": the call is named and
made. The shim needs no working Python for any of this.

What was refused is counted in RECORD in the sandbox's directory, for tools, and the first sentence is kept
in the bundle, from where `shim delete` repeats it when the shim could not tell it itself.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time

from kata_hypervisor.seccomp import notification, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_hypervisor.seccomp.notification import Call
    from kata_runtime.broker.log_sink import LogSink

HANDOVER = 5.0
"""Seconds that the shim may take from the announcement of its seal until it hands over the listener."""

GRACE = 2.0
"""Seconds that the shim gets to tell containerd why the pod has ended."""

MAX_NAMED = 100
"""Different calls that are named in the log; a shim that makes more of them is counted only."""

RECORD = "seal.json"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class Supervisor:
    """The watch over one shim's filter. Made before the shim is sealed, which then has HANDOVER for it.

    listener: descriptor, -1 until `watch`. shim: its process id. policy: the policy's name, for sentences.
    directory: descriptor of the sandbox's directory.
    """

    def __init__(
        self,
        shim: int,
        policy: str,
        *,
        enforce: bool,
        log_sink: LogSink,
        directory: int,
    ) -> None:
        self.listener = -1
        self._process = os.pidfd_open(shim)
        self._policy = policy
        self._enforce = enforce
        self._log_sink = log_sink
        self._directory = directory
        self._deadline: float | None = time.monotonic() + HANDOVER
        self._calls: dict[str, int] = {}

    def watch(self, listener: int) -> None:
        """The shim is sealed, and has handed over the listener, which is this object's from here on."""
        self.listener = listener
        self._deadline = None
        self._record()

    def answer(self) -> str | None:
        """Answer the call that waits, if one does; returns the sentence that ends the pod, the first time."""
        call = notification.receive(self.listener)
        if call is None:
            return None
        name, thread = syscalls.name_of(call.number) or "an unknown call", _thread_name(call.tid)
        if self._enforce:
            notification.refuse(self.listener, call, errno.EPERM)
        else:
            notification.let_through(self.listener, call)
        sentence = self._sentence(call, name, thread)
        if name not in self._calls and len(self._calls) < MAX_NAMED:
            self._log_sink.write("error" if self._enforce else "warning", sentence)
        self._calls[name] = self._calls.get(name, 0) + 1
        self._record()
        if not self._enforce or self._deadline is not None:
            return None
        self._deadline = time.monotonic() + GRACE
        self._log_sink.keep(sentence)
        return sentence

    def _sentence(self, call: Call, name: str, thread: str) -> str:
        words = ", ".join(f"{word:#x}" for word in call.arguments)
        deed = (
            f"seccomp: the runtime's process called {name} ({call.number}) on thread {thread} "
            f"(tid {call.tid}), which policy {self._policy} does not allow"
        )
        if not self._enforce:
            return f"{deed}; it was let through; arguments: {words}"
        return (
            f"{deed}: the call was refused and the pod ended (kata-ctl seccomp show prints the policy; "
            f'shim_seccomp = "log" in [runtime] names all such calls and lets them through); '
            f"arguments: {words}"
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

    def execute(self) -> None:
        """Kill the shim when its time is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if self.listener < 0:
                sentence = (
                    f"seccomp: the runtime's process made a call that policy {self._policy} refuses "
                    "before it could hand over the filter's listener, or was stopped then, and was killed"
                )
                self._log_sink.write("error", sentence)
                self._log_sink.keep(sentence)
            self._deadline = None
            try:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Stop supervising: what is refused from here on gets ENOSYS from the kernel. Idempotent."""
        for fd in (self.listener, self._process):
            if fd >= 0:
                os.close(fd)
        self.listener = self._process = -1


def _thread_name(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
