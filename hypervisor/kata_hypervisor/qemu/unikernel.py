"""A unikernel in QEMU: one process, whose standard output is the unikernel's.

Prepare: file -> host checks -> qemu, waiting -> monitor -> confinement verified.
Run:     the virtual CPUs run.
End:     the process's exit, with its own status.

All four groups of system calls are denied, whatever `seccompsandbox` says: a unikernel needs nothing that an
operator would loosen it for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_configuration.plain_table import overridden
from kata_configuration.sandbox_option import DENY_ALL, open_groups
from kata_hypervisor.bootable import Protocol, check_bootable, check_room
from kata_hypervisor.contract import (
    CRASHED,
    UnikernelCapabilities,
    UnikernelSpec,
    UnikernelVmm,
    VmExit,
    check_unikernel,
)
from kata_hypervisor.errors import LaunchError, UnikernelError
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.kernel_line import LIMIT
from kata_hypervisor.privileges import readable
from kata_hypervisor.qemu import unikernel_command as command
from kata_hypervisor.qemu.preflight import check_program
from kata_hypervisor.qemu.qmp import QmpClient, QmpError
from kata_hypervisor.qemu.qmp_control import QmpControlled

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

__all__ = ["QemuUnikernel"]

STARTS = (Protocol.LINUX, Protocol.MULTIBOOT, Protocol.PVH)


class QemuUnikernel(QmpControlled, UnikernelVmm):
    """One unikernel in QEMU; see `QmpControlled`."""

    capabilities = UnikernelCapabilities(initrd=True, tap_descriptors=True)

    def __init__(
        self, table: QemuTable, host: Host, *, start_budget: float | None = None, stop_budget: float = 1.0
    ) -> None:
        super().__init__(table, host, start_budget=start_budget, stop_budget=stop_budget)
        self._prepared = False
        self._fault: str | None = None

    # -- start ---------------------------------------------------------------------------------------------

    async def prepare(self, spec: UnikernelSpec) -> None:
        """See the contract."""
        check_unikernel(self.vmm, self.capabilities, spec)
        what = f"unikernel of {spec.sandbox_id}"
        await self._launch(what, lambda: self._spawn(spec), self._connect_and_watch)

    def _check_file(self, spec: UnikernelSpec) -> None:
        check_room(spec)
        protocol = check_bootable(spec.file, spec.name, self.vmm, STARTS)
        size = len(spec.command_line.encode())
        if protocol is Protocol.LINUX and size > LIMIT:
            raise UnikernelError(
                f"cannot run the unikernel {spec.name}: its command line has {size} bytes, and Linux reads "
                f"{LIMIT}: shorten its arguments and environment"
            )

    def _confine(self, spec: UnikernelSpec) -> None:
        """Decide what QEMU is confined to, and say where that is not what the configuration seems to say."""
        asked, loosened = self._table.seccompsandbox, not self._table.confined
        free = self._table.honor_unconfined and spec.unconfined
        self._table = overridden(self._table, seccompsandbox="off" if free else DENY_ALL, confined=not free)
        if free:
            self._warnings.append(
                "qemu runs unconfined: honor_unconfined = true in [hypervisor.qemu] "
                "turns its seccomp filter off"
            )
        elif loosened or open_groups(asked):
            self._warnings.append(
                f'seccompsandbox = "{asked}" in [hypervisor.qemu] does not apply to unikernels: '
                "their qemu is denied all four groups of system calls"
            )

    async def _spawn(self, spec: UnikernelSpec) -> None:
        self._check_file(spec)
        self._confine(spec)
        self._warnings += check_program(self._table, spec.memory_mib)
        argv = command.command_line(self._table, spec)
        with contextlib.ExitStack() as theirs:
            fds = command.descriptors(spec)
            for number in (command.FILE, command.INITRD):
                if number in fds:
                    fds[number] = readable(fds[number], theirs)
            block = spec.block is not None
            await self._spawn_qemu(argv, fds, theirs, command.shown(self._table, spec), block=block)

    async def _connect_and_watch(self) -> None:
        await self._connect()
        assert self._monitor is not None
        watch = asyncio.create_task(self._watch(self._monitor), name="unikernel's faults")
        self._children.ours.callback(watch.cancel)
        self._prepared = True

    async def _watch(self, monitor: QmpClient) -> None:
        """Kill a QEMU that has stopped its machine for good, and would wait for somebody to look at it."""
        with contextlib.suppress(QmpError):
            self._fault = await monitor.wait_fault()
            await self._children.kill()

    async def run(self) -> None:
        """See the contract; one that has exited by then is no failure: `wait` returns how."""
        if self._monitor is None or not self._prepared or self._running or self._requested:
            raise LaunchError("cannot run the unikernel: it is not prepared, or runs already")
        self._running = True  # it may end by itself before QEMU has answered
        try:
            await self._start_vcpus()
        except LaunchError:
            await self.stop()
            end = await self.wait()
            if end.requested or end.status.code is None:
                raise
        except BaseException:
            await self.stop()
            raise

    def _conclude(self, exited: Mapping[str, ExitStatus], requested: bool) -> VmExit:
        end = super()._conclude(exited, requested)
        if self._fault is None:
            return end
        reason = f"the unikernel crashed: qemu reports {self._fault}"
        return replace(end, reason=reason, status=ExitStatus(signal=CRASHED))

    @property
    def seal_features(self) -> frozenset[str]:
        """See the contract: what every shim may do is enough."""
        return frozenset()
