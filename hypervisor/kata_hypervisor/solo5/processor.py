"""The one virtual processor of a unikernel, which waits for its devices inside its calls."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

from kata_hypervisor.kvm import abi
from kata_hypervisor.kvm.vcpus import StopRunningError, Target, VcpuThreads
from kata_hypervisor.solo5.hypercalls import End


class Processor(VcpuThreads[End, mmap.mmap]):
    """A unikernel's processor. wake: an eventfd that does not block, which its waits for devices look at."""

    def __init__(
        self, wake: int, handle: Callable[[abi.KvmRun, mmap.mmap], End | None], ended: Callable[[End], None]
    ) -> None:
        super().__init__(handle, ended)
        self._wake = wake

    def attend(self) -> None:
        """On the thread, in a wait: do what is asked now. Raises StopRunningError when the wait is over."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        (vcpu,) = self._all
        with self._changed:
            while self._target is Target.HELD:
                self._report(vcpu, Target.HELD)
                self._changed.wait()
            self._report(vcpu, None)
            if self._target is not Target.RUNNING:
                raise StopRunningError

    def _fault(self, what: str) -> End:
        return End(f"was ended by its monitor: {what}")

    def _interrupt(self) -> None:
        os.eventfd_write(self._wake, 1)
