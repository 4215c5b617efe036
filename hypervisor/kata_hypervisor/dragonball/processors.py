"""The virtual processors: a thread for each, which does nothing but run the guest and handle its exits.

parked -> confined -> running <-> held -> ended. The threads exist before the process is sealed, and each
stacks its own, smaller filter before its first KVM_RUN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.exits import handle
from kata_hypervisor.kvm import abi

KICK = signal.SIGRTMIN + 1
"""Makes KVM_RUN return. Its handler does nothing."""

SYS_TGKILL = 234
"""Number of the system call on x86_64"""

_libc = ctypes.CDLL(None, use_errno=True)

RESTARTED = (errno.EINTR, errno.EAGAIN)


class Order(Enum):
    """What the threads are to do."""

    PARK = "park"
    CONFINE = "confine"
    RUN = "run"
    HOLD = "hold"
    END = "end"


@dataclass(slots=True)
class Processor:
    """One virtual processor. at_rest: the order that its thread has carried out."""

    descriptor: int
    page: memoryview
    run: abi.KvmRun
    thread: threading.Thread | None = None
    at_rest: Order | None = Order.PARK


class Processors:
    """All processors of a machine.

    ended: called once, on whichever thread, with one line that says how the guest ended.
    """

    def __init__(self, bus: Bus, ended: Callable[[str], None]) -> None:
        self._bus = bus
        self._ended = ended
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._order = Order.PARK
        self._seal: Callable[[], object] | None = None
        self._failure: Exception | None = None
        self._reason: str | None = None
        self._all: list[Processor] = []

    def add(self, descriptor: int, page: memoryview) -> None:
        """Take a processor of the machine, whose pages outlive `join`, and start its thread, which waits."""
        processor = Processor(descriptor, page, abi.KvmRun.from_buffer(page))
        name = f"vcpu{len(self._all)}"
        processor.thread = threading.Thread(target=self._live, args=(processor,), name=name, daemon=True)
        self._all.append(processor)
        processor.thread.start()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """KVM's descriptors of the processors, by number; while they are held, their state may be read."""
        return tuple(one.descriptor for one in self._all)

    @property
    def held(self) -> bool:
        """Whether none of them runs, by `hold`."""
        return self._order is Order.HOLD

    @property
    def threads(self) -> tuple[int, ...]:
        """The kernel's ids of the threads."""
        return tuple(one.thread.native_id or 0 for one in self._all if one.thread is not None)

    def confine(self, seal: Callable[[], object]) -> None:
        """Let every thread stack its filter; returns when all have. Raises what `seal` raised on one."""
        self._seal = seal
        self._give(Order.CONFINE)
        if self._failure is not None:
            raise self._failure

    def release(self) -> None:
        """Let the guest run, for the first time or again."""
        with self._changed:
            if self._order is Order.HOLD:
                self.tell_clocks()
            if self._order is not Order.END:
                self._order = Order.RUN
                self._changed.notify_all()

    def hold(self) -> None:
        """Stop all processors; returns when none runs. Must not be called on one of the threads."""
        self._give(Order.HOLD)

    def end(self, reason: str) -> None:
        """End the guest, on any thread; the first reason counts. The other threads hear of it in `join`."""
        with self._changed:
            if self._order is Order.END:
                return
            self._order, self._reason = Order.END, reason
            self._changed.notify_all()
        self._ended(reason)

    @property
    def reason(self) -> str | None:
        """How the guest ended, or None while it lives."""
        return self._reason

    def join(self) -> None:
        """Wait until every thread has ended; call `end` before. Their processors are forgotten."""
        self._kick()
        for processor in self._all:
            if processor.thread is not None:
                processor.thread.join()
        self._all.clear()

    def _give(self, order: Order) -> None:
        with self._changed:
            if self._order is Order.END:
                return
            self._order = order
            self._changed.notify_all()
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._order is not order or self._all_at(order))

    def _all_at(self, order: Order) -> bool:
        return all(one.at_rest is order for one in self._all)

    def tell_clocks(self) -> None:
        """Let the guest's clock know that it was stopped, so that its watchdogs do not bark."""
        for processor in self._all:
            with contextlib.suppress(OSError):  # a guest that does not use this clock
                fcntl.ioctl(processor.descriptor, abi.KVM_KVMCLOCK_CTRL)

    def _kick(self) -> None:
        for processor, thread in zip(self._all, self.threads, strict=True):
            processor.run.immediate_exit = 1
            # Not pthread_kill, which must not be called for a thread that has just ended.
            if _libc.syscall(SYS_TGKILL, self._process, thread, KICK) and ctypes.get_errno() != errno.ESRCH:
                raise OSError(ctypes.get_errno(), "cannot interrupt a virtual processor's thread")

    def _live(self, processor: Processor) -> None:
        try:
            while (order := self._next(processor)) is not Order.END:
                if order is Order.RUN:
                    self._run(processor)
                elif order is Order.CONFINE:
                    self._confine()
                elif order is Order.HOLD:
                    self._settle(processor)
                self._rest(processor, order)
        except Exception as error:  # a bug of ours must end this guest, not leave it with a processor less
            self.end(f"its processor's thread failed: {type(error).__name__}: {error}")

    def _next(self, processor: Processor) -> Order:
        """Wait for an order that this thread has not carried out yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._order is not processor.at_rest)
            processor.at_rest = None
            return self._order

    def _rest(self, processor: Processor, order: Order) -> None:
        """Say that an order was carried out. To have run until there was another one is not the end of it."""
        with self._changed:
            processor.at_rest = None if order is Order.RUN else order
            self._changed.notify_all()

    def _confine(self) -> None:
        assert self._seal is not None
        try:
            self._seal()
        except Exception as error:  # raised again by `confine`, on the caller's thread
            self._failure = error

    def _settle(self, processor: Processor) -> None:
        """Let KVM complete the access whose exit was handled last: it does so when it is entered again."""
        while self._order is Order.HOLD:
            processor.run.immediate_exit = 1
            try:
                fcntl.ioctl(processor.descriptor, abi.KVM_RUN)
            except OSError as error:
                processor.run.immediate_exit = 0
                if error.errno not in RESTARTED:
                    self.end(f"KVM_RUN failed: {error.strerror}")
                return
            reason = handle(processor.run, processor.page, self._bus)
            if reason is not None:
                self.end(reason)

    def _run(self, processor: Processor) -> None:
        run, page, descriptor, bus = processor.run, processor.page, processor.descriptor, self._bus
        while self._order is Order.RUN:
            try:
                fcntl.ioctl(descriptor, abi.KVM_RUN)
            except OSError as error:
                if error.errno not in RESTARTED:
                    return self.end(f"KVM_RUN failed: {error.strerror}")
                run.immediate_exit = 0
                continue
            reason = handle(run, page, bus)
            if reason is not None:
                return self.end(reason)
        return None
