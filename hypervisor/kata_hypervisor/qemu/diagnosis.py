"""Why a virtual machine ended, as one line that says what to do where that is known."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.host_checks import way_without_kvm
from kata_hypervisor.output_tail import LINE_LIMIT, Tail

# What QEMU's stderr says -> what the operator can do.
STDERR_HINTS = (
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

PANIC = re.compile(r"(?<!end )Kernel panic - (not syncing: .*)")

SHUTDOWN_REASONS = {
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest reset itself",
    "guest-panic": "the guest's kernel panicked",
    "host-signal": "qemu was told to end by a signal",
    "host-qmp-quit": "qemu was told to end through its monitor",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of an end.

    process: which one ended first. stderr: its last words. console: the guest's. shutdown: the reason that
    QEMU gave through its monitor, if any. running: whether the guest had been started.
    """

    process: str
    status: ExitStatus
    stderr: Tail
    console: Tail
    shutdown: str | None
    running: bool

    def describe(self, table: QemuTable) -> str:
        """Return one line: which process, how, its last word, and what to do."""
        told = self._guest_word()
        if told is not None:
            return told
        when = "" if self.running else " before the guest was ready"
        parts = [f"{self.process} ended{when}: {self.status}"]
        if self.stderr.last_line and self.status.signal != signal.SIGKILL:  # who is killed says nothing
            parts.append(self.stderr.last_line)
        elif not self.running and self.status.signal is None:
            program = table.path if self.process == "qemu" else table.virtio_fs_daemon
            parts.append(f"{program} said nothing")
        hint = self._hint(table)
        return ": ".join(parts) + (f" ({hint})" if hint else "")

    def _guest_word(self) -> str | None:
        """What the guest did, when QEMU ended in good order because of that."""
        if self.process != "qemu" or self.status.code != 0 or self.shutdown is None:
            return None
        panics = PANIC.findall(self.console.text)
        if panics and self.shutdown in ("guest-reset", "guest-panic"):
            return f"the guest's kernel panicked: {panics[-1][:LINE_LIMIT]}"
        return SHUTDOWN_REASONS.get(self.shutdown, f"qemu ended: {self.shutdown[:LINE_LIMIT]}")

    def _hint(self, table: QemuTable) -> str | None:
        if self.process == "qemu" and self.status.signal == signal.SIGSYS and table.confined:
            return (
                f'blocked by its own -sandbox filter, seccompsandbox = "{table.seccompsandbox}"; '
                "the kernel's log names the system call (type=1326)"
            )
        if self.status.signal == signal.SIGKILL:
            return "the kernel's out-of-memory killer, if nobody sent it: see dmesg"
        text = self.stderr.text if self.process == "qemu" else ""
        return next((hint for pattern, hint in STDERR_HINTS if pattern.search(text)), None)
