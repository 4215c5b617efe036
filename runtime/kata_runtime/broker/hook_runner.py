"""Running hooks: the process that holds a sandbox's, and one hook at a time.

It waits for {"kind": name, "pid": n} with the pipe to answer on and perhaps the pod's network namespace, runs
the hooks of that kind in order, and answers with a JSON list: a sentence for each hook that failed. Of hooks
that lead to a running container the first failure is the last to run; of the others all are run. It exits
when the broker has closed its end, or exits itself.

A hook is a program of the operator's: it runs as root and with the host's files, as containerd would run it,
in a session of its own, in the bundle's directory, with the environment that its declaration names and no
descriptor but its streams. It reads the container's state. Its group is killed when its time is over, or
when nobody waits for the answer any more.

Where a hook runs. prestart, createRuntime, poststart, poststop: in the host's namespaces. createContainer: in
the pod's network namespace, which is what the host has of the container's; all its others are the guest's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from functools import partial

from kata_runtime import syscalls
from kata_runtime.broker import begun_hooks, hook_kinds, messages
from kata_runtime.logging import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, NoReturn

    from kata_runtime.broker.hook_declaration import Declared
    from kata_runtime.broker.origin import Origin

MAX_OUTPUT = 2000
"""Bytes of a hook's output, the last ones, that a sentence quotes."""


def live(channel: socket.socket, declared: Declared, origin: Origin, begun: int) -> NoReturn:
    """Be the runner, in a process that the broker has just forked. begun: see `run_all`; -1 for no file."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        os.setsid()
        syscalls.set_name("kata-hooks")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        origin.enter_host()
        syscalls.close_all_but({0, 1, 2, channel.fileno(), *([begun] if begun >= 0 else [])})
        _serve(channel, declared, None if begun < 0 else begun)
    finally:
        os._exit(0)


def _serve(channel: socket.socket, declared: Declared, begun: int | None) -> None:
    while True:
        try:
            message, descriptors = messages.receive(channel)
        except (messages.EndOfStream, ConnectionError):
            return
        answer, network = descriptors[0], (descriptors[1] if len(descriptors) > 1 else None)
        try:
            kind = message["kind"]
            recorded = begun if kind == hook_kinds.POSTSTOP else None
            lines = run_all(declared, kind, message["pid"], network, answer, recorded)
            os.write(answer, json.dumps(lines).encode())
        except OSError:
            pass  # nobody waits for it any more
        finally:
            messages.close_all(descriptors)


def run_all(
    declared: Declared,
    kind: str,
    pid: int = 0,
    network: int | None = None,
    answer: int | None = None,
    begun: int | None = None,
) -> list[str]:
    """Run the hooks of a kind; return a sentence for each that failed.

    pid: for the state; 0 for none. network: the pod's namespace, for hooks of `hook_kinds.IN_POD`. answer: a
    pipe whose other end is closed by whoever does not wait any more. begun: the file of those that were
    begun and are not run again, see `begun_hooks`.
    """
    entries = declared["hooks"].get(kind, [])
    state = {**declared["state"], "status": hook_kinds.STATUS[kind], **({"pid": pid} if pid else {})}
    done = begun_hooks.read(begun) if begun is not None else ()
    failed = []
    for number, entry in enumerate(entries):
        if number in done:
            continue
        run = _Run(
            entry,
            json.dumps(state).encode(),
            state["bundle"],
            network if kind == hook_kinds.IN_POD else None,
            None if begun is None else partial(begun_hooks.write, begun, number),
        )
        if fault := run.fault(answer):
            of = f" ({number + 1} of {len(entries)})" if len(entries) > 1 else ""
            failed.append(f"the {kind} hook {entry['path']}{of} {fault}")
            if kind not in hook_kinds.LATE:
                break
    return failed


class _Run:
    """One run of one hook. state: what it reads. cwd: where it runs. network: a namespace, or our own.

    begin: what its process does last before it is the hook.
    """

    def __init__(
        self,
        entry: dict[str, Any],
        state: bytes,
        cwd: str,
        network: int | None,
        begin: Callable[[], None] | None,
    ) -> None:
        self._entry = entry
        self._begin = begin
        self._runner = os.getpid()
        self._input = memoryview(state)
        self._cwd = cwd
        self._network = network
        self._output = b""

    def fault(self, answer: int | None) -> str:
        """Run it; return what went wrong, as the rest of a sentence, or nothing."""
        timeout = self._entry.get("timeout")
        try:
            process = self._start()
        except (OSError, subprocess.SubprocessError) as error:
            return f"cannot be run: {error.strerror if isinstance(error, OSError) else error}"
        with process:
            try:
                deadline = None if timeout is None else time.monotonic() + timeout
                ended = self._follow(process, deadline, answer)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if not ended:
            return f"was killed: its timeout of {timeout} s was over{self._quotation()}"
        if process.returncode < 0:
            return f"was killed by signal {-process.returncode}{self._quotation()}"
        if process.returncode:
            return f"failed with exit status {process.returncode}{self._quotation()}"
        return ""

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(entry.partition("=")[::2] for entry in self._entry.get("env") or ())
        return subprocess.Popen(
            self._entry.get("args") or [self._entry["path"]],
            executable=self._entry["path"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self._cwd if os.path.isdir(self._cwd) else "/",
            start_new_session=True,
            preexec_fn=self._prepare,  # noqa: PLW1509 - this process has one thread
            bufsize=0,
        )

    def _prepare(self) -> None:
        """In the child: its parent's death is its own, and it ignores no signal."""
        syscalls.die_with_parent(signal.SIGKILL)
        if os.getppid() != self._runner:
            os._exit(1)  # which died before
        for number in signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        if self._network is not None:
            syscalls.enter_network(self._network)
        if self._begin is not None:
            self._begin()

    def _follow(self, process: subprocess.Popen[bytes], deadline: float | None, answer: int | None) -> bool:
        """Write the state, read the output, until it exits: True; or until its time is over: False.

        Raises BrokenPipeError: nobody waits for the answer any more.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout, exited = process.stdin.fileno(), process.stdout.fileno(), os.pidfd_open(process.pid)
        waiter = select.poll()
        for fd, events in ((stdin, select.POLLOUT), (stdout, select.POLLIN), (exited, select.POLLIN)):
            os.set_blocking(fd, False)
            waiter.register(fd, events)
        if answer is not None:
            waiter.register(answer, 0)
        try:
            while True:
                left = None if deadline is None else (deadline - time.monotonic()) * 1e3
                if left is not None and left <= 0:
                    return False
                ready = [fd for fd, _ in waiter.poll(left)]
                if answer in ready:
                    raise BrokenPipeError
                if stdout in ready and not self._read(stdout):
                    waiter.unregister(stdout)
                if stdin in ready and not self._write(stdin):
                    waiter.unregister(stdin)
                    process.stdin.close()
                if exited in ready:
                    while self._read(stdout):
                        pass
                    process.wait()
                    return True
        finally:
            os.close(exited)

    def _read(self, fd: int) -> bool:
        """Read some output; False when there is none now, or none any more."""
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        self._output = (self._output + piece)[-MAX_OUTPUT:]
        return bool(piece)

    def _write(self, fd: int) -> bool:
        """Write some of the state; False when all is written, or nobody reads."""
        try:
            self._input = self._input[os.write(fd, self._input) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return bool(self._input)

    def _quotation(self) -> str:
        text = printable(self._output.decode("utf-8", "replace").strip())
        return f": {text}" if text else ""
