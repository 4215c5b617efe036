"""Errors of the hypervisor room.

    HypervisorError
    ├── LaunchError            the VMM could not be started, or exited before the guest was ready
    │   └── MachineFailedError     it was started, and exited, refused or did not answer
    ├── ConfinementError       the kernel reports another confinement than the configuration asks for
    ├── PolicyError            a seccomp policy, program or name is wrong: mend the policy
    ├── SealError              a filter could not be built, installed or read back: nothing may run
    ├── HostUnfitError         this host lacks what the configuration needs (no /dev/kvm, full /dev/shm ...)
    │   └── KvmRefusedError        its KVM does not make the machine, or does not take its state
    ├── SnapshotError          a machine cannot be saved; or what was saved is damaged, or of another machine
    ├── UnikernelError         a unikernel's file is damaged, or needs what is not there
    └── NotSupportedError      this driver cannot do what was asked

Messages are lower case without a full stop, say what was attempted and what to do, and are complete:
they reach the user through containerd as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping


class HypervisorError(Exception):
    """Root of all errors that a hypervisor driver raises on purpose."""


class LaunchError(HypervisorError):
    """The VMM or one of its helpers could not be started, or exited before the guest was ready.

    diagnostics: last lines of stderr and of the guest's console, by heading; empty when nothing ran.
    """

    def __init__(self, message: str, diagnostics: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.diagnostics: Mapping[str, str] = diagnostics or {}


class MachineFailedError(LaunchError):
    """The VMM was started, and it exited, refused or did not answer: it may not know why itself."""


class ConfinementError(HypervisorError):
    """The kernel reports another confinement of a VMM process than the configuration asks for."""


class PolicyError(HypervisorError):
    """A seccomp policy, program or name in it is wrong."""


class SealError(HypervisorError):
    """A filter could not be built, installed or read back; what it was to confine must not run."""


class HostUnfitError(HypervisorError):
    """This host cannot run what the configuration describes."""


class KvmRefusedError(HostUnfitError):
    """The host's KVM can be opened, and does not make the machine or does not take its state."""


class SnapshotError(HypervisorError):
    """A machine cannot be saved; or what was saved is damaged, or of another machine than is wanted."""


class UnikernelError(HypervisorError):
    """A unikernel's file is damaged, is for another monitor, or declares a device that is not supplied."""


class NotSupportedError(HypervisorError):
    """The driver cannot do this, and says so instead of pretending."""
