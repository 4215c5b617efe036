"""The threads of virtual CPUs, over a KVM_RUN that is a function of this test."""

from __future__ import annotations

import errno
import fcntl
import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_hypervisor.kvm import abi
from kata_hypervisor.kvm.vcpus import VcpuThreads, accept_kicks

SIZE = 4 * mmap.PAGESIZE


class Machine(VcpuThreads[str, mmap.mmap]):
    """Some vCPUs. exits: taken one after the other by vCPU 0; without one, a vCPU stays in the guest."""

    def __init__(self, count: int, handle: Callable[[abi.KvmRun, mmap.mmap], str | None]) -> None:
        self.outcomes: list[str] = []
        self.exits = 0
        self.entered = threading.Semaphore(0)
        super().__init__(handle, self.outcomes.append)
        self.pages = [mmap.mmap(-1, SIZE) for _ in range(count)]
        for number, page in enumerate(self.pages):
            self.add(number, page)

    def _fault(self, what: str) -> str:
        return what

    def enter(self, descriptor: int, request: int) -> int:
        """Stands where fcntl.ioctl is called."""
        assert request == abi.KVM_RUN
        self.entered.release()
        while True:
            if descriptor == 0 and self.exits:
                self.exits -= 1
                return 0
            if self._all[descriptor].run.immediate_exit:
                raise InterruptedError(errno.EINTR, "a signal came")


Make = Callable[..., Machine]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Machine] = []
    accept_kicks()  # for good: a kick may reach a thread that was joined and has not yet ended

    def make_one(
        count: int = 2, handle: Callable[[abi.KvmRun, mmap.mmap], str | None] = lambda run, page: None
    ) -> Machine:
        machine = Machine(count, handle)
        made.append(machine)
        monkeypatch.setattr(fcntl, "ioctl", machine.enter)
        return machine

    yield make_one
    for machine in made:
        machine.end("the test is over")
        machine.join()
        for page in machine.pages:
            page.close()  # a BufferError, were there somebody who could still write to it


def test_each_thread_stacks_its_filter_before_the_guest_runs(make: Make) -> None:
    machine = make()
    sealed: list[str] = []
    machine.confine(lambda: sealed.append(threading.current_thread().name))
    assert sorted(sealed) == ["vcpu0", "vcpu1"]
    assert not machine.entered.acquire(blocking=False)
    machine.release()
    machine.entered.acquire()


def test_a_filter_that_cannot_be_stacked_is_raised_to_the_caller(make: Make) -> None:
    machine = make()
    with pytest.raises(ZeroDivisionError):
        machine.confine(lambda: 1 // 0)


def test_held_vcpus_are_out_of_the_guest_until_they_are_released(make: Make) -> None:
    machine = make()
    machine.release()
    for _ in range(2):
        machine.entered.acquire()
    machine.hold()
    assert machine.held
    while machine.entered.acquire(blocking=False):  # as often as they were kicked before they left
        pass
    assert not machine.entered.acquire(timeout=0.05)
    machine.release()
    for _ in range(2):
        machine.entered.acquire()


def test_the_kernel_has_the_names_of_its_threads(make: Make) -> None:
    machine = make(2)
    machine.release()
    for _ in range(2):
        machine.entered.acquire()
    names = [Path(f"/proc/self/task/{tid}/comm").read_text() for tid in machine.thread_ids]
    assert names == ["vcpu0\n", "vcpu1\n"]
    machine.end("it was stopped")
    machine.join()


def test_the_first_outcome_counts(make: Make) -> None:
    machine = make(2, lambda run, page: "it powered off")
    machine.exits = 1
    machine.release()
    machine.entered.acquire()
    while machine.outcome is None:
        machine.entered.acquire(timeout=0.01)
    machine.end("it was stopped")
    assert (machine.outcome, machine.outcomes) == ("it powered off", ["it powered off"])
    machine.hold()  # returns: nobody is asked for anything any more
    machine.join()
    assert machine.thread_ids == ()


def test_a_fault_of_ours_ends_the_guest(make: Make) -> None:
    def fail(run: abi.KvmRun, page: mmap.mmap) -> str:
        raise ZeroDivisionError("bug")

    machine = make(1, fail)
    machine.exits = 1
    machine.release()
    while machine.outcome is None:
        machine.entered.acquire(timeout=0.01)
    assert machine.outcomes == ["the thread of its vCPU failed: ZeroDivisionError: bug"]


def test_a_kvm_that_refuses_ends_the_guest(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make(1)

    def refuse(descriptor: int, request: int) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    machine.release()
    while machine.outcome is None:
        machine.entered.acquire(timeout=0.01)
    assert machine.outcome == "KVM_RUN failed: Cannot allocate memory"


def test_a_thread_that_has_ended_may_be_kicked(make: Make) -> None:
    machine = make(2)
    machine.end("it was stopped")
    for vcpu in machine._all:
        assert vcpu.thread is not None
        vcpu.thread.join()
    machine.join()
