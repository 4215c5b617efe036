"""Why QEMU exited, as one line: what it reported through its monitor, and hints for what it writes."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, NamedTuple

from kata_hypervisor.exit_reason import Hints, describe_exit, find_hint, kernel_panic
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.host_checks import way_without_kvm
from kata_hypervisor.output_tail import LINE_LIMIT, Tail
from kata_hypervisor.qemu.info import QEMU

if TYPE_CHECKING:
    from kata_configuration.models.qemu import QemuHypervisor as QemuTable

# What QEMU writes to stderr -> what the operator can do.
STDERR_HINTS: Hints = (
    (
        re.compile(r"could not access KVM|failed to initialize kvm", re.IGNORECASE),
        way_without_kvm("qemu"),
    ),
    (
        re.compile(r"cannot allocate memory|cannot set up guest memory", re.IGNORECASE),
        "the host has too little free memory, or a cgroup limit is too low for default_memory",
    ),
    (
        re.compile(r"There is no option group 'sandbox'|seccomp support is disabled"),
        'this qemu was built without seccomp; use another, or run it unconfined with seccompsandbox = "off"',
    ),
    (
        re.compile(r"linux kernel too old|could not load kernel", re.IGNORECASE),
        "kernel in [hypervisor.qemu] is not a Linux kernel that qemu can start",
    ),
    (
        re.compile(r"qboot\.rom"),
        "qemu's firmware files are missing; install qemu-system-data or what your distribution calls it",
    ),
)

SHUTDOWN_REASONS = {
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest reset itself",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "qemu was stopped by a signal",
    "host-qmp-quit": "qemu was stopped through its monitor",
}


class Ending(NamedTuple):
    """What is known of an end.

    process: which one exited first. stderr: the tail of its standard error. console: of the guest's console.
    shutdown: the reason that QEMU gave through its monitor, if any. running: whether the guest had been
    started.
    """

    process: str
    status: ExitStatus
    stderr: Tail
    console: Tail
    shutdown: str | None
    running: bool

    def describe(self, table: QemuTable) -> str:
        """Return one line: which process, how it exited, what it wrote last, and what to do."""
        return self._guests_action() or describe_exit(
            self.process, self.status, self.stderr, running=self.running, hint=self._hint(table)
        )

    def _guests_action(self) -> str | None:
        """What the guest did, when QEMU exited in good order because of that."""
        if self.process != QEMU.program or self.status.code != 0 or self.shutdown is None:
            return None
        if self.shutdown in ("guest-reset", "guest-panic") and (panic := kernel_panic(self.console)):
            return panic
        return SHUTDOWN_REASONS.get(self.shutdown, f"qemu shut down: {self.shutdown[:LINE_LIMIT]}")

    def _hint(self, table: QemuTable) -> str | None:
        if self.process != QEMU.program:
            return None
        if self.status.signal == signal.SIGSYS and table.confined:
            return (
                f'its own filter, seccompsandbox = "{table.seccompsandbox}", blocks a system call; '
                "the kernel's log names it (type=1326)"
            )
        return find_hint(STDERR_HINTS, self.stderr.text)
