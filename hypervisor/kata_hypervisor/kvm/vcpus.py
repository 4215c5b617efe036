"""The threads of a machine's virtual CPUs: each does nothing but run the guest and handle its exits.

parked -> confined -> running <-> held -> ended. The threads exist before the process is sealed, and each
stacks its own, smaller filter before its first KVM_RUN. A kick, a signal, takes a thread out of the guest.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from kata_hypervisor import libc
from kata_hypervisor.kvm import abi

KICK = signal.SIGRTMIN + 1
"""Makes KVM_RUN return; see `accept_kicks`."""

INTERRUPTED = (errno.EINTR, errno.EAGAIN)
"""What KVM_RUN fails with when a signal, or immediate_exit, has taken the thread out of the guest."""

Outcome = TypeVar("Outcome")
Page = TypeVar("Page", memoryview, mmap.mmap)


class Target(Enum):
    """The state that the threads are asked to be in."""

    PARKED = "parked"
    CONFINED = "confined"
    RUNNING = "running"
    HELD = "held"
    ENDED = "ended"


class StopRunningError(Exception):
    """Takes a thread out of whatever it does for the guest, to its end."""


@dataclass(slots=True)
class Vcpu(Generic[Page]):
    """One virtual CPU. page: what KVM shares of it, with `run` in it. reached: the target that it is at."""

    descriptor: int
    page: Page
    run: abi.KvmRun
    thread: threading.Thread | None = None
    reached: Target | None = Target.PARKED


class VcpuThreads(Generic[Outcome, Page]):
    """All virtual CPUs of a machine.

    handle: handles an exit, on the vCPU's thread, with its state and its page; what it returns is how the
    guest ended, None while the guest goes on. ended: called once, on whichever thread, with how it ended.
    """

    def __init__(
        self,
        handle: Callable[[abi.KvmRun, Page], Outcome | None],
        ended: Callable[[Outcome], None],
    ) -> None:
        self._handle: Callable[[abi.KvmRun, Page], Outcome | None] = handle
        self._ended = ended
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._target = Target.PARKED
        self._seal: Callable[[], object] | None = None
        self._failure: Exception | None = None
        self._outcome: Outcome | None = None
        self._all: list[Vcpu[Page]] = []

    def add(self, descriptor: int, page: Page) -> None:
        """Take a vCPU of the machine, whose page outlives `join`, and start its thread, which waits."""
        # SAFETY: the structure lies in the page, which is KVM's and mapped until after `join`.
        vcpu = Vcpu(descriptor, page, abi.KvmRun.from_buffer(page))
        name = f"vcpu{len(self._all)}"
        vcpu.thread = threading.Thread(target=self._live, args=(vcpu,), name=name, daemon=True)
        self._all.append(vcpu)
        vcpu.thread.start()

    @property
    def thread_ids(self) -> tuple[int, ...]:
        """The kernel's ids of the threads; none after `join`."""
        return tuple(one.thread.native_id or 0 for one in self._all if one.thread is not None)

    @property
    def held(self) -> bool:
        """Whether none of them runs, by `hold`."""
        return self._target is Target.HELD

    @property
    def outcome(self) -> Outcome | None:
        """How the guest ended, or None while it lives."""
        return self._outcome

    def confine(self, seal: Callable[[], object]) -> None:
        """Let every thread stack its filter; returns when all have. Raises what `seal` raised on one."""
        self._seal = seal
        self._reach(Target.CONFINED)
        if self._failure is not None:
            raise self._failure

    def release(self) -> None:
        """Let the guest run, for the first time or again."""
        with self._changed:
            if self._target is Target.HELD:
                self._before_resuming()
            if self._target is not Target.ENDED:
                self._target = Target.RUNNING
                self._changed.notify_all()

    def hold(self) -> None:
        """Stop all vCPUs; returns when none runs. Must not be called on one of the threads."""
        self._reach(Target.HELD)

    def end(self, outcome: Outcome) -> None:
        """End the guest, on any thread; the first outcome counts. `join` kicks the threads out of it."""
        with self._changed:
            if self._target is Target.ENDED:
                return
            self._target, self._outcome = Target.ENDED, outcome
            self._changed.notify_all()
        self._ended(outcome)

    def join(self) -> None:
        """Wait until every thread has ended; call `end` before. The vCPUs, and their pages, are let go."""
        self._kick()
        for vcpu in self._all:
            if vcpu.thread is not None:
                vcpu.thread.join()
            del vcpu.run  # a frame that an error keeps must not keep the page
        self._all.clear()

    # -- what a machine may do otherwise ---------------------------------------------------------------------

    def _fault(self, what: str) -> Outcome:
        """How the guest ended when KVM or this process has failed it."""
        raise NotImplementedError

    def _before_resuming(self) -> None:
        """Prepare the vCPUs to go on after they were held; the lock is taken."""

    def _settle(self, vcpu: Vcpu[Page]) -> None:
        """On its thread: bring a vCPU that was taken out of the guest to rest."""

    def _interrupt(self) -> None:
        """Make a thread look at its target that waits elsewhere than in KVM_RUN."""

    # -- on the thread of whoever asks -----------------------------------------------------------------------

    def _reach(self, target: Target) -> None:
        with self._changed:
            if self._target is Target.ENDED:
                return
            self._target = target
            self._changed.notify_all()
        self._kick()
        with self._changed:
            self._changed.wait_for(
                lambda: self._target is not target or all(one.reached is target for one in self._all)
            )

    def _kick(self) -> None:
        for vcpu, tid in zip(self._all, self.thread_ids, strict=True):
            vcpu.run.immediate_exit = 1
            try:
                # Not pthread_kill, which must not be called for a thread that has just ended.
                libc.signal_thread(self._process, tid, KICK)
            except ProcessLookupError:
                continue
        self._interrupt()

    # -- on a vCPU's thread ----------------------------------------------------------------------------------

    def _live(self, vcpu: Vcpu[Page]) -> None:
        libc.name_thread(threading.current_thread().name)  # Python before 3.14 does not tell the kernel
        try:
            while (target := self._next(vcpu)) is not Target.ENDED:
                if target is Target.RUNNING:
                    self._run(vcpu)
                elif target is Target.CONFINED:
                    self._confine()
                elif target is Target.HELD:
                    self._settle(vcpu)
                with self._changed:
                    # To have run until there was another target is not to have reached it.
                    self._report(vcpu, None if target is Target.RUNNING else target)
        except StopRunningError:
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours must end this guest, not leave it with a vCPU less
            self.end(self._fault(f"the thread of its vCPU failed: {type(error).__name__}: {error}"))

    def _next(self, vcpu: Vcpu[Page]) -> Target:
        """Wait for a target that this thread has not reached."""
        with self._changed:
            self._changed.wait_for(lambda: self._target is not vcpu.reached)
            vcpu.reached = None
            return self._target

    def _report(self, vcpu: Vcpu[Page], target: Target | None) -> None:
        """Say what a thread has reached; the lock is taken."""
        vcpu.reached = target
        self._changed.notify_all()

    def _confine(self) -> None:
        assert self._seal is not None
        try:
            self._seal()
        except Exception as error:  # noqa: BLE001 - raised again by `confine`, on the caller's thread
            self._failure = error

    def _run(self, vcpu: Vcpu[Page]) -> None:
        run, page, descriptor, handle = vcpu.run, vcpu.page, vcpu.descriptor, self._handle
        while self._target is Target.RUNNING:
            try:
                fcntl.ioctl(descriptor, abi.KVM_RUN)
            except OSError as error:
                if error.errno not in INTERRUPTED:
                    return self.end(self._fault(f"KVM_RUN failed: {error.strerror}"))
                run.immediate_exit = 0
                continue
            outcome = handle(run, page)
            if outcome is not None:
                return self.end(outcome)
        return None


def accept_kicks() -> None:
    """Give KICK a handler that does nothing: that the signal came is enough. On the main thread only."""
    signal.signal(KICK, _ignore)
    signal.siginterrupt(KICK, False)  # KVM_RUN returns all the same, every other call goes on


def _ignore(number: int, frame: object) -> None:
    """See `accept_kicks`."""
