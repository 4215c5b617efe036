"""The kernel's word, read from a /proc that the test writes, and compared with what was asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.seccomp.confinement import (
    ThreadConfinement,
    find_breach,
    inherited_filters,
    read_threads,
)


def write_status(proc: Path, pid: int, tid: int, text: str) -> None:
    directory = proc / str(pid) / "task" / str(tid)
    directory.mkdir(parents=True)
    (directory / "status").write_text(text)


def status(name: str, mode: int, filters: int | None) -> str:
    count = "" if filters is None else f"Seccomp_filters:\t{filters}\n"
    return f"Name:\t{name}\nState:\tS (sleeping)\nNoNewPrivs:\t1\nSeccomp:\t{mode}\n{count}"


def test_every_thread_is_read_the_main_one_first(tmp_path: Path) -> None:
    write_status(tmp_path, 7, 11, status("CPU 0/TCG", 0, 0))
    write_status(tmp_path, 7, 7, status("qemu: x", 2, 3))
    threads = read_threads(7, str(tmp_path))
    assert [(t.tid, t.name, t.mode, t.filters, t.no_new_privs) for t in threads] == [
        (7, "qemu: x", 2, 3, True),
        (11, "CPU 0/TCG", 0, 0, True),
    ]


def test_a_kernel_that_does_not_count_filters_has_at_least_one_in_filter_mode(tmp_path: Path) -> None:
    write_status(tmp_path, 7, 7, status("qemu", 2, None))
    assert [thread.filters for thread in read_threads(7, str(tmp_path))] == [1]


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError, match="no process 7"):
        read_threads(7, str(tmp_path))


def test_the_real_proc_agrees_with_itself() -> None:
    threads = read_threads(os.getpid())
    assert threads[0].tid == os.getpid()
    assert threads[0].filters == inherited_filters()


def thread(tid: int, mode: int, filters: int) -> ThreadConfinement:
    return ThreadConfinement(tid, f"t{tid}", mode, filters, False)


def test_agreement() -> None:
    assert find_breach([thread(1, 2, 1), thread(2, 2, 2)], confined=True) is None
    assert find_breach([thread(1, 0, 0), thread(2, 0, 0)], confined=False) is None
    assert find_breach([thread(1, 2, 1)], confined=False, inherited=1) is None


def test_the_first_thread_that_differs_is_named() -> None:
    threads = [thread(1, 2, 1), thread(2, 0, 0), thread(3, 0, 0)]
    assert find_breach(threads, confined=True, process="qemu", required_by="seccompsandbox") == (
        "the kernel reports seccomp mode 0 for thread 2 (t2) of qemu; seccompsandbox requires mode 2"
    )
    assert find_breach(threads, confined=False) == (
        "the kernel reports seccomp mode 2 for thread 1 (t1); the configuration requires mode 0"
    )


def test_filters_that_were_inherited_are_told_by_their_number() -> None:
    assert find_breach([thread(1, 2, 2)], confined=True, inherited=2, process="firecracker") == (
        "the kernel reports 2 seccomp filters for thread 1 (t1) of firecracker; "
        "the configuration requires more than 2"
    )
    assert find_breach([thread(1, 2, 3)], confined=False, inherited=2) == (
        "the kernel reports 3 seccomp filters for thread 1 (t1); the configuration requires 2"
    )


def test_strict_mode_is_no_filter() -> None:
    assert find_breach([thread(1, 1, 0)], confined=True) is not None


def test_nothing_read_proves_nothing() -> None:
    for confined in (True, False):
        assert find_breach([], confined=confined, process="qemu") == (
            "the kernel lists no thread of qemu; the configuration requires filters on each"
        )


MODES = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 4)), min_size=1, max_size=6)


@given(states=MODES, inherited=st.integers(0, 3))
def test_confined_means_every_thread_has_more_than_it_inherited(
    states: list[tuple[int, int]], inherited: int
) -> None:
    threads = [thread(tid, *state) for tid, state in enumerate(states, start=1)]
    agrees = all(mode == 2 and filters > inherited for mode, filters in states)
    assert (find_breach(threads, confined=True, inherited=inherited) is None) == agrees
