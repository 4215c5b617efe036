"""The contract that every hypervisor driver keeps.

A driver turns a `VmSpec` into a running virtual machine whose confinement the kernel has confirmed, in two
steps. `prepare` does all that takes a dangerous system call: processes are started, files and devices opened,
memory mapped; the guest has not run an instruction. The runtime then seals its own process, and `run` lets
the guest go. A driver promises: every thread of the VMM that exists is in the seccomp state that the
configuration asks for when `prepare` and when `run` return; a child that dies is seen at once; `stop` leaves
no process and no file behind, at any stage; after `prepare` it needs no system call but those of the policy's
features `seal_features`. It does not promise that the guest is ready: that is for the agent's client to find
out.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kata_agent.transport import GuestTransport
from kata_hypervisor.host import Child, ExitStatus

__all__ = ["Hypervisor", "SharedDirectory", "VmExit", "VmSpec", "VmmProcess"]

SHARED_DIRECTORY_TAG = "kataShared"


@dataclass(frozen=True, slots=True)
class SharedDirectory:
    """A directory of the host that the guest mounts over virtio-fs.

    path: absolute path on the host, as seen by the process that serves it.
    tag: the name under which the guest mounts it.
    """

    path: Path
    tag: str = SHARED_DIRECTORY_TAG


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A virtual machine, described without naming a driver.

    sandbox_id: name of the sandbox, at most 64 characters of [A-Za-z0-9._-].
    directory: the sandbox's private directory on the host (mode 0700), for sockets.
    vcpus, memory_mib: number of virtual CPUs and guest memory in MiB at boot.
    kernel, initrd, image: absolute paths; `image` is the guest's root filesystem, given as a read-only disk.
    kernel_parameters: words of the kernel command line that do not depend on the driver, in order; the
        driver puts its own (console, root device) before them, so that these win.
    shared: the directory shared with the guest, or None.
    agent_port: vsock port on which the agent listens.
    """

    sandbox_id: str
    directory: Path
    vcpus: int
    memory_mib: int
    kernel: Path
    initrd: Path | None = None
    image: Path | None = None
    rootfs_type: str = "erofs"
    kernel_parameters: tuple[str, ...] = ()
    shared: SharedDirectory | None = None
    agent_port: int = 1024


@dataclass(frozen=True, slots=True)
class VmmProcess:
    """A process that serves the virtual machine, for proofs and metrics. role: "vmm" or "virtiofsd"."""

    role: str
    child: Child


@dataclass(frozen=True, slots=True)
class VmExit:
    """The end of a virtual machine.

    reason: one readable line, such as "qemu was killed by SIGKILL".
    process: which process ended first ("qemu", "virtiofsd").
    status: how it ended. diagnostics: last lines of stderr and of the guest's console, by heading.
    requested: whether `stop` caused it.
    """

    reason: str
    process: str
    status: ExitStatus
    requested: bool = False
    diagnostics: Mapping[str, str] = field(default_factory=dict)


class Hypervisor(abc.ABC):
    """One virtual machine, driven asynchronously. Every method may be cancelled."""

    @abc.abstractmethod
    async def prepare(self, spec: VmSpec) -> None:
        """Make the machine, and prove the confinement of the VMM's processes; the guest does not run yet.

        Raises:
            LaunchError: the VMM or a helper could not be started or ended at once; the message's first line
                says which, its exit status or signal and the last line of its stderr.
            ConfinementError: the kernel's word differs from the configuration's; nothing is left running.
            HostUnfitError: the host lacks what the configuration names.
        """

    @abc.abstractmethod
    async def run(self) -> None:
        """Let the guest run, once. Raises as `prepare` does; nothing is left running then."""

    @property
    @abc.abstractmethod
    def seal_features(self) -> frozenset[str]:
        """The features of the seccomp policy that this process needs for the machine after `prepare`."""

    def seal_vcpus(self, install: Callable[[], object]) -> None:  # noqa: B027 - most drivers have none
        """Between `prepare` and `run`: what every virtual CPU's thread of this process calls first.

        install: puts a second filter on the calling thread, and raises where it cannot. Without effect where
        the VMM is another process.
        """

    @abc.abstractmethod
    async def stop(self) -> None:
        """End the machine and its helpers; idempotent, also after a failed or cancelled start."""

    @abc.abstractmethod
    async def wait(self) -> VmExit:
        """Return when the machine has ended, for whatever reason: any helper's death ends it too."""

    @abc.abstractmethod
    async def pause(self) -> None:
        """Stop all virtual CPUs. Raises NotSupportedError where the driver cannot."""

    @abc.abstractmethod
    async def resume(self) -> None:
        """Let the virtual CPUs run again."""

    @abc.abstractmethod
    async def prove(self) -> None:
        """Read the confinement of every VMM thread again. Raises ConfinementError as `start` does."""

    @property
    @abc.abstractmethod
    def transport(self) -> GuestTransport:
        """How to reach the guest's ports. Valid after `prepare`."""

    @property
    @abc.abstractmethod
    def processes(self) -> tuple[VmmProcess, ...]:
        """The processes that serve the machine, the VMM itself first."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know about this machine, one line each. Valid after `prepare`."""
        return ()

    @property
    @abc.abstractmethod
    def console_tail(self) -> str:
        """The last lines that the guest wrote to its console (at most 8 KiB)."""
