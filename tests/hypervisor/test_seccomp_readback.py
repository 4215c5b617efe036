"""Programs read back from the kernel: as they were installed, from any thread, and nothing stays stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from filtered_process import filtered_process
from kata_hypervisor import libc
from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions, bpf, readback
from kata_hypervisor.seccomp.confinement import read_threads

ALLOW = (bpf.RET | bpf.K, 0, 0, actions.ALLOW)
FIRST = bpf.encode([ALLOW])
SECOND = bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 0), ALLOW])
THIRD = bpf.encode([(bpf.LD | bpf.ABS, 0, 0, 4), (bpf.LD | bpf.IMM, 0, 0, 7), ALLOW])


def effective_capabilities() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


def may_read() -> bool:
    needed = 1 << 21 | 1 << 19  # CAP_SYS_ADMIN, CAP_SYS_PTRACE
    return (
        effective_capabilities() & needed == needed and "Seccomp:\t0" in Path("/proc/self/status").read_text()
    )


privileged = pytest.mark.skipif(
    not may_read(), reason="reading filters needs CAP_SYS_ADMIN, CAP_SYS_PTRACE and no filter on the reader"
)


def state_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))


@privileged
def test_programs_come_back_as_they_were_given_oldest_first() -> None:
    with filtered_process([FIRST, SECOND, THIRD]) as process:
        main, other = read_threads(process.pid)
        assert readback.read_filters(main.tid) == [FIRST, SECOND, THIRD]
        assert readback.read_filters(other.tid) == [FIRST, SECOND]
        assert (main.filters, other.filters) == (3, 2)


@privileged
def test_a_thread_without_a_filter_has_no_programs() -> None:
    with filtered_process([]) as process:
        assert readback.read_filters(process.pid) == []


@privileged
def test_what_was_read_goes_on_running() -> None:
    with filtered_process([FIRST]) as process:
        readback.read_filters(process.pid)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


@privileged
def test_a_process_that_was_stopped_stays_stopped_and_no_more() -> None:
    with filtered_process([FIRST]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert readback.read_filters(process.pid) == [FIRST]
        # It runs for a moment, only to stop again.
        deadline = time.monotonic() + 20
        while state_of(process.pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state_of(process.pid) == "T"
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


@privileged
def test_an_error_while_reading_lets_the_thread_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tid: int, index: int) -> bytes:
        raise RuntimeError(f"reading {index} of {tid}")

    with filtered_process([FIRST]) as process:
        monkeypatch.setattr(readback, "_read_filter", fail)
        with pytest.raises(RuntimeError):
            readback.read_filters(process.pid)
        assert "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.parametrize("pid", [0x3FFFFFFF])
def test_a_process_that_is_not_there(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        readback.read_filters(pid)


def test_its_own_threads_a_process_cannot_read() -> None:
    with pytest.raises(SealError, match="cannot read its own threads"):
        readback.read_filters(os.getpid())


@privileged
def test_one_that_is_traced_already_names_its_tracer() -> None:
    with filtered_process([FIRST]) as process:
        tracer = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, {process.pid}, None, None) == 0
os.write(1, b"ready\\n")
sys.stdin.read()
"""
        command = [sys.executable, "-IS", "-c", tracer]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            with pytest.raises(SealError, match=f"process {other.pid} traces it already"):
                readback.read_filters(process.pid)


@privileged
def test_a_reader_under_a_filter_is_told_so() -> None:
    """In a process of its own, because a filter cannot be taken off."""
    script = f"""
from kata_hypervisor.seccomp import filter, readback
from kata_hypervisor import libc
from kata_hypervisor.errors import SealError
filter.install(bytes.fromhex({FIRST.hex()!r}), all_threads=False, listener=False)
try:
    readback.read_filters({{pid}})
except SealError as error:
    print(error)
"""
    with filtered_process([FIRST]) as process:
        code = script.format(pid=process.pid)
        answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "the reader is itself under a seccomp filter" in answer.stdout


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EACCES, "lacks CAP_SYS_ADMIN"),
        (errno.EINVAL, "CONFIG_CHECKPOINT_RESTORE"),
        (errno.EIO, "CONFIG_CHECKPOINT_RESTORE"),
        (errno.EMEDIUMTYPE, "no classic BPF program"),
    ],
)
@privileged
def test_each_refusal_has_its_reason(number: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with filtered_process([FIRST]) as process:
        with monkeypatch.context() as patched:
            real = libc.ptrace

            def refuse(request: int, *arguments: Any, **options: Any) -> int:
                if request == readback._GET_FILTER:
                    raise OSError(number, os.strerror(number))
                return real(request, *arguments, **options)

            patched.setattr(libc, "ptrace", refuse)
            with pytest.raises(SealError, match=why):
                readback.read_filters(process.pid)
        assert readback.read_filters(process.pid) == [FIRST]


@privileged
def test_a_thread_that_does_not_stop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with filtered_process([FIRST]) as process, monkeypatch.context() as patched:
        patched.setattr(readback, "PATIENCE", 0.0)
        patched.setattr(os, "waitpid", lambda _pid, _options: (0, 0))
        with pytest.raises(SealError, match="it does not stop"):
            readback.read_filters(process.pid)
        patched.undo()
        process.kill()
