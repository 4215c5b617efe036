"""No call fails because a signal came: our handlers restart what they interrupt, and raw calls go on.

Python makes again what fails with EINTR for some of its functions only (PEP 475): not os.mkdir, fcntl.ioctl
or socket.socketpair. Under a filter that asks, as `kata-ctl seccomp trace` puts it on a process, and on file
systems whose server is elsewhere, any call can be interrupted.
"""

from __future__ import annotations

import ast
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from kata_hypervisor.seccomp import actions, bpf, notification, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.supervised import SupervisedCommand

ROOT = Path(__file__).parents[2]
ROOMS = [ROOT / room for room in ("configuration", "hypervisor", "agent", "runtime")]

supervising = pytest.mark.skipif(
    kernel.notification_sizes() is None, reason="this kernel has no seccomp notifications"
)

MARK = "getpgid"
"""The call by which a script says that its handler is in place."""

CAREFREE = "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
RESTARTING = CAREFREE + "signal.siginterrupt(signal.SIGCHLD, False)\n"

SCRIPTS = {
    # Where somebody else's handler interrupts, the modules that call the C library make the call again.
    "runtime": (
        "from kata_runtime import syscalls\n" + CAREFREE,
        "os.close(syscalls.open_beneath(root, 'etc'))\n"
        "syscalls.io_priority(0)\n"
        "syscalls.become_subreaper()\n"
        "try: syscalls.unmount('/nowhere')\n"
        "except OSError as error: assert error.errno in (errno.ENOENT, errno.EPERM), error\n",
        ("openat2", "ioprio_get", "prctl", "umount2"),
    ),
    "hypervisor": (
        "from kata_hypervisor import libc\n" + CAREFREE,
        "libc.give_up_privileges()\nlibc.signal_thread(os.getpid(), os.getpid(), 0)\n",
        ("prctl", "tgkill"),
    ),
    "agent": (
        "from kata_agent.guest import syscalls\n" + CAREFREE,
        "syscalls.become_subreaper()\n"
        "try: syscalls.umount('/nowhere')\n"
        "except OSError as error: assert error.errno in (errno.ENOENT, errno.EPERM), error\n",
        ("prctl", "umount2"),
    ),
    # Where the handler is ours, nothing is interrupted, Python's calls least of all.
    "a handler that restarts": (
        RESTARTING,
        "os.mkdir(sys.argv[1] + '/made')\n"
        "socket.socketpair()\n"
        "read, write = os.pipe()\n"
        "fcntl.ioctl(read, termios.FIONREAD, bytes(4))\n"
        "assert os.path.isdir(sys.argv[1] + '/made')\n",
        ("mkdir", "socketpair", "pipe2", "ioctl"),
    ),
}


def asking(names: tuple[str, ...]) -> bytes:
    """A filter that asks about these calls, and lets the others through."""
    numbers = [syscalls.numbers(syscalls.native())[name] for name in names]
    program = [(bpf.LD | bpf.ABS, 0, 0, 0)]
    program += [
        (bpf.JMP | bpf.JEQ | bpf.K, len(numbers) - place, 0, one) for place, one in enumerate(numbers)
    ]
    return bpf.encode(
        [*program, (bpf.RET | bpf.K, 0, 0, actions.ALLOW), (bpf.RET | bpf.K, 0, 0, actions.NOTIFY)]
    )


def interrupt_once(supervised: SupervisedCommand, mark: int) -> tuple[int, set[int]]:
    """Interrupt the first call of each kind after the mark, by SIGCHLD: the status, and the kinds."""
    listener, marked, interrupted = supervised.listener, False, set[int]()
    process = os.pidfd_open(supervised.pid)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(process, select.POLLIN)
    while process not in (ready := dict(poll.poll())):
        if not ready[listener] & select.POLLIN or (call := notification.receive(listener)) is None:
            continue
        if not marked or call.number in interrupted or call.number == mark:
            marked = marked or call.number == mark
            notification.let_through(listener, call)
        else:
            interrupted.add(call.number)
            os.kill(supervised.pid, signal.SIGCHLD)
    os.close(process)
    return supervised.wait(), interrupted


@supervising
@pytest.mark.parametrize("which", SCRIPTS)
def test_a_call_that_is_interrupted_is_made(which: str, tmp_path: Path) -> None:
    before, calls, names = SCRIPTS[which]
    beginning = "import errno, fcntl, os, signal, socket, sys, termios\nroot = os.open('/', os.O_RDONLY)\n"
    script = f"{beginning}{before}os.getpgid(0)\n{calls}"
    numbers = syscalls.numbers(syscalls.native())
    command = [sys.executable, "-c", script, str(tmp_path)]
    with SupervisedCommand(command, asking((*names, MARK))) as supervised:
        status, interrupted = interrupt_once(supervised, numbers[MARK])
    assert status == 0
    assert interrupted == {numbers[name] for name in names}


def test_every_handler_of_ours_restarts_what_it_interrupts() -> None:
    found = []
    for path in (path for room in ROOMS for path in room.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "signal.signal(" not in source:
            continue
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef) and (handlers := installed(function)):
                found.append((path.name, function.name))
                restarted = "signal.siginterrupt(" in ast.unparse(function)
                assert restarted, f"{path}: {function.name} installs {handlers} without SA_RESTART"
    assert ("server.py", "_reap_on_sigchld") in found
    assert ("vcpus.py", "accept_kicks") in found


def installed(function: ast.FunctionDef) -> list[str]:
    """The handlers that a function installs, but the kernel's and what `signal.signal` had returned."""
    texts = [
        ast.unparse(node.args[1])
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "signal.signal"
    ]
    return [text for text in texts if "lambda" in text or text.startswith(("self.", "_"))]
