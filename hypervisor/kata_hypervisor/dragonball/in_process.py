"""What both drivers do whose VMM is this process: let its vCPUs run, verify them, hold them.

prepare: the machine is made, with a thread for each vCPU, which waits.
The caller seals the process: nothing is opened, mapped or started from then on.
run:     each vCPU's thread puts on its own filter -> the kernel is asked -> the guest's first instruction.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from kata_hypervisor.dragonball.control import Control
from kata_hypervisor.dragonball.own_process import OwnProcess
from kata_hypervisor.dragonball.thread_result import ThreadResult
from kata_hypervisor.errors import ConfinementError, HypervisorError, LaunchError, MachineFailedError
from kata_hypervisor.host import Host
from kata_hypervisor.kvm.vcpus import VcpuThreads
from kata_hypervisor.lifecycle import VmLifecycle
from kata_hypervisor.seccomp.confinement import find_breach, inherited_filters

SWITCH_INTERVAL = 0.0005
"""Seconds for which one thread may keep the others of this process waiting, vCPUs with an exit among them."""

END_PATIENCE = 10.0
"""Seconds for which the end of the machine's threads is waited for. They run nothing of the guest's any more;
one that hangs in the host's kernel keeps its memory and its files until this process exits, and nothing else.
"""

_log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")


class InProcessVmm(VmLifecycle, Generic[Outcome]):
    """A machine in this process.

    host: reads what the kernel says of this process's threads, which a sealed process cannot.

    Make it, and await `prepare`, in the main thread and before the caller seals itself.
    """

    _noun: ClassVar[str]
    """What runs, for sentences: "the virtual machine"."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inherited = inherited_filters()
        self._seal: Callable[[], object] | None = None
        self._worker: Control | None = None
        self._own: OwnProcess | None = None
        self._guest_ended: asyncio.Future[Outcome] | None = None
        self._running = False
        self._hangs = False

    @property
    @abc.abstractmethod
    def _vcpus(self) -> VcpuThreads[Outcome, Any] | None:
        """The machine's vCPUs, once it is made."""

    @abc.abstractmethod
    def _describe(self, outcome: Outcome) -> str:
        """How the guest ended, as a sentence."""

    def seal_vcpus(self, install: Callable[[], object]) -> None:
        """See the contract."""
        self._seal = install

    def _make_worker(self) -> Control:
        """Start the thread that may wait for the vCPUs, which wait for each other."""
        self._worker = Control("machine")
        return self._worker

    async def _release_machine(self, close: Callable[[], None]) -> bool:
        """Have the worker end the machine's threads and release what they use; whether that was done in time.

        After False nothing that a thread may use can be closed.
        """
        if self._worker is None:
            return not self._hangs
        worker, self._worker = self._worker, None
        closing = asyncio.ensure_future(worker.run(close))
        await asyncio.wait({closing}, timeout=END_PATIENCE)
        if closing.done():
            closing.result()
            worker.close()
            return True
        self._hangs = True
        names = ", ".join(sorted(thread.name for thread in threading.enumerate() if thread.daemon))
        _log.error(
            "%s has ended, but threads of it hang (of %s): its memory and its files are released when this "
            "process exits; a disk or a network file system of the host may not answer",
            self._noun,
            names,
        )
        return False

    def _guest_end(self) -> ThreadResult[Outcome]:
        """Make what the machine sets at the guest's end; the caller closes it."""
        result = ThreadResult[Outcome]()
        self._guest_ended = result.future
        return result

    async def run(self) -> None:
        """See the contract."""
        vcpus = self._vcpus
        if vcpus is None or self._end is None or self._running:
            raise LaunchError(f"cannot run {self._noun}: it is not prepared, or runs already")
        try:
            await self._refuse_ended(vcpus)
            if self._seal is not None:
                assert self._worker is not None
                seal = self._seal
                await self._worker.run(lambda: vcpus.confine(seal))
            await self._verify_confinement(vcpus)
            await self._refuse_ended(vcpus)
            vcpus.release()
            self._running = True
        except BaseException:
            await self.stop()
            raise

    async def _refuse_ended(self, vcpus: VcpuThreads[Outcome, Any]) -> None:
        """Raises LaunchError when the machine has ended before it ran."""
        if vcpus.outcome is not None:
            end = await self.wait()
            raise MachineFailedError(f"cannot run {self._noun}: {end.reason}", end.diagnostics)

    async def verify_confinement(self) -> None:
        """See the contract."""
        vcpus = self._vcpus
        if not self._running or vcpus is None:
            raise HypervisorError(f"cannot verify the confinement of {self._noun}: it is not running")
        await self._verify_confinement(vcpus)

    async def _verify_confinement(self, vcpus: VcpuThreads[Outcome, Any]) -> None:
        """Ask the kernel: a filter on each thread, and one more on each vCPU's."""
        if self._seal is None:
            return
        assert self._own is not None
        threads = await self._host.confinement(self._own)
        stacked = [thread for thread in threads if thread.tid in vcpus.thread_ids]
        named = {"process": "the runtime's process", "required_by": "disable_seccomp = false"}
        breach = find_breach(threads, True, self._inherited, **named)
        if stacked or vcpus.outcome is None:
            breach = breach or find_breach(stacked, True, self._inherited + 1, **named)
        if breach is not None:
            raise ConfinementError(breach)

    async def pause(self) -> None:
        """See the contract."""
        vcpus, worker = self._running_vcpus("pause")
        await worker.run(vcpus.hold)

    async def resume(self) -> None:
        """See the contract."""
        vcpus, _ = self._running_vcpus("resume")
        vcpus.release()

    def _running_vcpus(self, action: str) -> tuple[VcpuThreads[Outcome, Any], Control]:
        """The vCPUs, and a thread that may wait for them. Raises HypervisorError where nothing runs."""
        vcpus = self._vcpus
        outcome = vcpus.outcome if vcpus is not None else None
        if vcpus is None or self._worker is None or not self._running or outcome is not None:
            reason = "it is not running" if outcome is None else self._describe(outcome)
            raise HypervisorError(f"cannot {action} {self._noun}: {reason}")
        return vcpus, self._worker
