"""What a unikernel's calls reach on the host: files, taps, a stream for what it prints; and its waits for
them.

All of it runs on the processor's thread, on descriptors that were open before. A wait ends early when the
wake-up event is written, and then asks `attend` whether to go on.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable

from kata_hypervisor.solo5 import abi
from kata_hypervisor.solo5.memory import GuestFaultError

LONGEST_WAIT = 3600.0
"""Seconds; a longer wait is several."""

MOST_FRAME = 65536
"""Bytes of an Ethernet frame: the largest that a tap takes."""


class Waiter:
    """Waits for descriptors, and for the word to stop.

    wake: an eventfd, written by who wants the thread's attention. attend: called then, on the waiting thread;
    it returns when the wait goes on, and raises when it does not.
    """

    def __init__(self, wake: int, attend: Callable[[], None]) -> None:
        self._wake = wake
        self._attend = attend
        self._inputs = select.epoll()
        self._outputs = select.epoll()
        self._handles: dict[int, int] = {}
        for one in (self._inputs, self._outputs):
            one.register(wake, select.EPOLLIN)

    def add_input(self, descriptor: int, handle: int) -> None:
        """Report the handle when there is something to read."""
        self._inputs.register(descriptor, select.EPOLLIN)
        self._handles[descriptor] = handle

    def add_output(self, descriptor: int) -> bool:
        """Prepare for waits until it can be written to; False where that is always so, as with a file."""
        try:
            self._outputs.register(descriptor, select.EPOLLOUT)
        except PermissionError:
            return False
        return True

    def wait_inputs(self, nanoseconds: int) -> list[int]:
        """Return the handles that are ready, or none after a time, which is rounded up to milliseconds."""
        deadline = time.monotonic_ns() + nanoseconds
        while True:
            left = max(deadline - time.monotonic_ns(), 0) / 1e9
            ready = [number for number, _ in self._inputs.poll(min(left, LONGEST_WAIT))]
            handles = [self._handles[number] for number in ready if number != self._wake]
            if self._wake in ready:
                self._attend()
            if handles or time.monotonic_ns() >= deadline:
                return handles

    def wait_output(self) -> None:
        """Return when what was given to `add_output` may be written to."""
        while self._wake in [number for number, _ in self._outputs.poll()]:
            self._attend()

    def close(self) -> None:
        """Close what waits, not what is waited for."""
        self._inputs.close()
        self._outputs.close()


class Console:
    """What the unikernel prints goes to a descriptor that does not block; it waits for its reader.

    seen: is given all of it as well, for the last lines.
    """

    def __init__(self, descriptor: int, waiter: Waiter, seen: Callable[[bytes], None]) -> None:
        self._descriptor = descriptor
        self._waiter = waiter
        self._seen = seen
        waiter.add_output(descriptor)

    def print(self, data: memoryview) -> None:
        """Write all of it. A reader that has gone away is no fault of the guest's."""
        self._seen(bytes(data[-8192:]))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                self._waiter.wait_output()
            except (BrokenPipeError, ConnectionResetError):
                return


class Block:
    """A block device on an open file. capacity: bytes."""

    def __init__(self, descriptor: int, capacity: int, *, read_only: bool = False) -> None:
        self._descriptor = descriptor
        self._read_only = read_only
        self.capacity = capacity

    def read(self, offset: int, view: memoryview) -> int:
        """Fill the view. Returns the call's result."""
        return self._move(os.preadv, offset, view)

    def write(self, offset: int, view: memoryview) -> int:
        """Write the view. Returns the call's result."""
        return abi.UNSPECIFIED if self._read_only else self._move(os.pwritev, offset, view)

    def _move(self, call: Callable[[int, list[memoryview], int], int], offset: int, view: memoryview) -> int:
        if offset >= self.capacity or len(view) > self.capacity - offset:
            return abi.INVALID
        while view:
            try:
                count = call(self._descriptor, [view], offset)
            except OSError as error:
                raise GuestFaultError(f"lost its block device at byte {offset}: {error.strerror}") from error
            if count == 0:
                raise GuestFaultError(f"lost its block device at byte {offset}: the file has become shorter")
            view, offset = view[count:], offset + count
        return abi.OK


class Net:
    """A network device on a tap's descriptor, which does not block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, view: memoryview) -> tuple[int, int]:
        """Take a frame off the wire. Returns its length and the call's result."""
        try:
            count = os.readv(self._descriptor, [view])
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise GuestFaultError(f"lost its network device: {error.strerror}") from error
        return count, abi.OK if count else abi.AGAIN

    def write(self, view: memoryview) -> int:
        """Put a frame on the wire; where the wire has no room it is lost. Returns the call's result."""
        if len(view) > MOST_FRAME:
            return abi.INVALID
        try:
            os.write(self._descriptor, view)
        except BlockingIOError:
            return abi.OK
        except OSError as error:
            if error.errno == errno.EINVAL:
                return abi.INVALID
            raise GuestFaultError(f"lost its network device: {error.strerror}") from error
        return abi.OK


Device = Block | Net
