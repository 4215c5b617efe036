"""The thread that runs a unikernel's one processor: parked -> confined -> running <-> held -> ended.

It exists before the process is sealed, and stacks a filter of its own before the guest's first instruction. A
signal takes it out of the guest, an eventfd out of a wait.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Callable
from enum import Enum

from kata_hypervisor.kvm import abi as kvm
from kata_hypervisor.solo5.hypercalls import End

KICK = signal.SIGRTMIN + 1
"""Makes KVM_RUN return; its handler does nothing, and it must have one."""

AGAIN = (errno.EINTR, errno.EAGAIN)

Handler = Callable[[kvm.KvmRun, mmap.mmap], End | None]
"""Handles an exit: the processor's state and the page that it is in. None: the guest goes on."""


class Order(Enum):
    """What the thread is to do."""

    PARK = "park"
    CONFINE = "confine"
    RUN = "run"
    HOLD = "hold"
    END = "end"


class StopRunningError(Exception):
    """Takes the thread out of whatever it does for the guest."""


class Processor:
    """A virtual processor, and its thread from the start.

    descriptor: of KVM, with its page. wake: an eventfd. ended: called once on whichever thread, with how the
    guest ended.
    """

    def __init__(
        self, descriptor: int, page: mmap.mmap, wake: int, handle: Handler, ended: Callable[[End], None]
    ) -> None:
        self._descriptor = descriptor
        self._page = page
        self._state = kvm.KvmRun.from_buffer(page)
        self._wake = wake
        self._handle = handle
        self._ended = ended
        self._changed = threading.Condition()
        self._order = Order.PARK
        self._done: Order | None = Order.PARK
        self._seal: Callable[[], object] | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._live, name="vcpu0", daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int:
        """The kernel's id of the thread."""
        return self._thread.native_id or 0

    def confine(self, seal: Callable[[], object]) -> None:
        """Let the thread stack its filter; returns when it has. Raises what `seal` raised there."""
        self._seal = seal
        self._give(Order.CONFINE)
        if self._failure is not None:
            raise self._failure

    def release(self) -> None:
        """Let the guest run, for the first time or again."""
        with self._changed:
            if self._order is not Order.END:
                self._order = Order.RUN
                self._changed.notify_all()

    def hold(self) -> None:
        """Stop the guest; returns when it does not run, or has ended."""
        self._give(Order.HOLD)

    def end(self, end: End) -> None:
        """End the guest, from any thread; the first reason counts."""
        with self._changed:
            if self._order is Order.END:
                return
            self._order = Order.END
            self._changed.notify_all()
        self._kick()
        self._ended(end)

    def join(self) -> None:
        """Wait until the thread has ended; call `end` before. Lets go of the page."""
        self._thread.join()
        del self._state

    def attend(self) -> None:
        """On the thread: do what is ordered now. Raises StopRunningError when it is not to run the guest."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        with self._changed:
            while self._order is Order.HOLD:
                self._rest(Order.HOLD)
                self._changed.wait()
            self._done = None
            if self._order is not Order.RUN:
                raise StopRunningError

    def _give(self, order: Order) -> None:
        with self._changed:
            if self._order is Order.END:
                return
            self._order = order
            self._changed.notify_all()
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._done is order or self._order is not order)

    def _kick(self) -> None:
        self._state.immediate_exit = 1
        os.eventfd_write(self._wake, 1)
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            signal.pthread_kill(self._thread.ident or 0, KICK)

    def _rest(self, order: Order) -> None:
        """Say that an order was carried out; the lock is held."""
        self._done = order
        self._changed.notify_all()

    def _live(self) -> None:
        try:
            if self._wait_to_run():
                self.end(self._run())
        except StopRunningError:
            return
        except Exception as error:  # a bug of ours must end the guest, not leave it without its processor
            self.end(End(f"was ended by a fault of its monitor: {type(error).__name__}: {error}"))

    def _wait_to_run(self) -> bool:
        """Park, with a filter when one is given; returns whether the guest is to run."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._order is not self._done)
                order = self._order
            if order in (Order.RUN, Order.END):
                return order is Order.RUN
            if order is Order.CONFINE:
                self._confine()
            with self._changed:
                self._rest(order)

    def _confine(self) -> None:
        assert self._seal is not None
        try:
            self._seal()
        except Exception as error:  # raised again by `confine`, on the caller's thread
            self._failure = error

    def _run(self) -> End:
        state, page, descriptor, handle = self._state, self._page, self._descriptor, self._handle
        while True:
            if self._order is not Order.RUN:
                self.attend()
            try:
                fcntl.ioctl(descriptor, kvm.KVM_RUN)
            except OSError as error:
                if error.errno not in AGAIN:
                    return End(f"was ended by KVM: {error.strerror}")
                state.immediate_exit = 0
                continue
            end = handle(state, page)
            if end is not None:
                return end
