"""Calls handed to a supervisor, by this kernel: received, refused, let through, and the caller's death."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kata_hypervisor.seccomp import actions, bpf, notification, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.supervised import SupervisedCommand

NATIVE = os.uname().machine
pytestmark = pytest.mark.skipif(
    kernel.notification_sizes() is None, reason="this kernel has no seccomp notifications"
)

ASK_MKDIR = bpf.encode(
    [
        (bpf.LD | bpf.ABS, 0, 0, 0),
        (bpf.JMP | bpf.JEQ | bpf.K, 0, 1, syscalls.numbers("x86_64")["mkdir"]),
        (bpf.RET | bpf.K, 0, 0, actions.NOTIFY),
        (bpf.RET | bpf.K, 0, 0, actions.ALLOW),
    ]
)


@contextmanager
def caller(code: str) -> Iterator[SupervisedCommand]:
    """A Python process under a filter that asks about mkdir."""
    with SupervisedCommand([sys.executable, "-IS", "-c", code], ASK_MKDIR) as supervised:
        started = notification.receive(supervised.listener)
        assert started is not None
        notification.let_through(supervised.listener, started)
        yield supervised


def wait_for_call(listener: int) -> notification.Call:
    """The next call of the caller; pytest's timeout is the limit."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll()
        call = notification.receive(listener)
        if call is not None:
            return call


def test_the_kernels_structures_are_those_of_this_module() -> None:
    assert kernel.notification_sizes() == notification.SIZES


def test_a_call_arrives_with_its_arguments_and_is_refused() -> None:
    code = "import os\ntry: os.mkdir('/nowhere/x', 0o712)\nexcept OSError as e: os._exit(e.errno)"
    with caller(code) as supervised:
        listener = supervised.listener
        call = wait_for_call(listener)
        assert (call.tid, call.number) == (supervised.pid, syscalls.numbers("x86_64")["mkdir"])
        assert call.arch == bpf.AUDIT_ARCH[NATIVE]
        assert call.arguments[1] == 0o712
        assert f"tid={supervised.pid}" in repr(call)
        assert notification.is_waiting(listener, call)
        assert notification.refuse(listener, call, errno.EXDEV)
        assert supervised.wait() == errno.EXDEV
        assert not notification.is_waiting(listener, call)


def test_a_call_that_is_let_through_is_made_by_the_kernel(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "made")
    with caller(f"import os; os.mkdir({path!r})") as supervised:
        assert notification.let_through(supervised.listener, wait_for_call(supervised.listener))
        assert supervised.wait() == 0
    assert os.path.isdir(path)


def test_an_answer_that_the_kernel_does_not_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered_already(_fd: int, _request: int, _argument: object) -> int:
        raise OSError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))

    call = notification.Call(1, 2, 3, 4, 5, (0,) * 6)
    monkeypatch.setattr(fcntl, "ioctl", answered_already)
    with pytest.raises(BlockingIOError):
        notification.let_through(0, call)


def test_an_answer_to_the_dead_is_told_to_be_one() -> None:
    with caller("import os; os.mkdir('/nowhere/x')") as supervised:
        listener = supervised.listener
        call = wait_for_call(listener)
        supervised.kill()
        supervised.wait()
        assert not notification.is_waiting(listener, call)
        assert not notification.refuse(listener, call, errno.EPERM)
        assert not notification.let_through(listener, call)


def test_a_listener_whose_callers_are_gone_hangs_up_and_has_no_call() -> None:
    with caller("") as supervised:
        listener = supervised.listener
        supervised.wait()
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        assert poll.poll() == [(listener, select.POLLHUP)]
        assert notification.receive(listener) is None


def test_what_is_no_listener_is_an_error() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="ioctl"):
            notification.receive(read)
        assert not notification.wake_synchronously(read)
    finally:
        os.close(read)
        os.close(write)


def test_the_module_costs_nothing_that_the_broker_does_not_have() -> None:
    added = modules_after("import kata_hypervisor.seccomp.notification") - modules_after("")
    assert not {"ctypes", "dataclasses", "typing", "enum", "re", "kata_hypervisor.errors"} & added


def modules_after(statement: str) -> set[str]:
    """What an interpreter has loaded after a statement."""
    script = f"import sys; {statement or 'pass'}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(answer.stdout.split())
