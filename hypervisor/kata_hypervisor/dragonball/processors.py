"""The virtual processors of a machine with a kernel."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable
from functools import partial

from kata_hypervisor.dragonball.bus import Bus
from kata_hypervisor.dragonball.exits import Crash, handle
from kata_hypervisor.kvm import abi
from kata_hypervisor.kvm.vcpus import INTERRUPTED, Target, Vcpu, VcpuThreads


class Processors(VcpuThreads[str, memoryview]):
    """All processors of a machine; how its guest ended is one line.

    ended: called once, on whichever thread, with that line.
    """

    def __init__(self, bus: Bus, ended: Callable[[str], None]) -> None:
        super().__init__(partial(handle, bus=bus), ended)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """KVM's descriptors of the processors, by number; while they are held, their state may be read."""
        return tuple(one.descriptor for one in self._all)

    def mark_clocks_stopped(self) -> None:
        """Let the guest's clock know that it was stopped, so that its watchdogs do not fire."""
        for one in self._all:
            with contextlib.suppress(OSError):  # a guest that does not use this clock
                fcntl.ioctl(one.descriptor, abi.KVM_KVMCLOCK_CTRL)

    def _fault(self, what: str) -> str:
        return Crash(what)

    def _before_resuming(self) -> None:
        self.mark_clocks_stopped()

    def _settle(self, vcpu: Vcpu[memoryview]) -> None:
        """Let KVM complete the access whose exit was handled last: it does so when it is entered again."""
        while self._target is Target.HELD:
            vcpu.run.immediate_exit = 1
            try:
                fcntl.ioctl(vcpu.descriptor, abi.KVM_RUN)
            except OSError as error:
                vcpu.run.immediate_exit = 0
                if error.errno not in INTERRUPTED:
                    self.end(self._fault(f"KVM_RUN failed: {error.strerror}"))
                return
            outcome = self._handle(vcpu.run, vcpu.page)
            if outcome is not None:
                self.end(outcome)
