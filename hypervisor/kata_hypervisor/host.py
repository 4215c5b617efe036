"""What a driver may ask of the host: start a named child, and learn how it exited.

Drivers never fork. The runtime's broker does, and this is the contract between the two. A test double
needs neither root nor a VMM.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a child exited: an exit code, or the signal that killed it."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"killed by {name}"
        return f"exit status {self.code}"


class Child(Protocol):
    """A process that the host started for a driver."""

    @property
    def name(self) -> str:
        """The role under which it was started, such as "qemu" or "virtiofsd"."""

    @property
    def pid(self) -> int:
        """Process id on the host."""

    @property
    def exited(self) -> ExitStatus | None:
        """How it exited, or None while it runs."""

    @property
    def violation(self) -> str:
        """The call that its `ChildFilter` refused, and for which it was killed, in a sentence; or empty."""

    async def wait(self) -> ExitStatus:
        """Return once the process has exited and was reaped; any number of tasks may wait."""

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; does nothing when the process has exited."""


class Host(Protocol):
    """The host's side of a driver."""

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        fds: Mapping[int, int],
        environment: Mapping[str, str] | None = None,
        gate: int | None = None,
        seccomp: ChildFilter | None = None,
        privileges: Privileges | None = None,
    ) -> Child:
        """Start a child, its descriptors set from `fds`.

        `fds` maps the descriptor number in the child to a descriptor of the caller; 0, 1 and 2 that are not
        named are /dev/null. The caller keeps its descriptors and closes them itself, right after the call,
        so that the child's exit is seen as an end of file. The child gets PR_SET_PDEATHSIG, a clean
        environment and no other descriptor.

        gate: the number of one of the descriptors. The child reads from it before it runs its program, which
        does not get it, and ends when there is nothing to read. seccomp: a filter that is put on it first,
        and watched; it is in force when this returns. privileges: what the child is shown of the host; None:
        all of it, with the privileges of the broker.

        Raises:
            LaunchError: the executable cannot be started (missing, not executable, no memory ...).
        """

    async def discard(self, path: Path) -> None:
        """Remove a socket that a child has made in the sandbox's directory, if it is there."""

    async def register_guest(self, address: int | str) -> None:
        """Before the seal: say where the guest's ports are reached, for `connect_guest`.

        address: the guest's vsock context id, or the path of its VMM's unix socket (hybrid vsock).
        """

    async def hold_monitor(self, driver: str, monitor: socket.socket) -> socket.socket:
        """Before the seal: have the host hold a VMM's monitor, which could open whatever the VMM can.

        driver: whose `DriverInfo.monitor_commands` are all that passes once this process is sealed. monitor:
        the connection, the host's from here on. Returns another one, to use in its place.

        Raises:
            LaunchError: the host does not hold it.
        """

    async def connect_guest(self, port: int) -> socket.socket:
        """Open a connection to a port of the guest, or to the VMM's unix socket: a sealed process cannot.

        Returns a non-blocking socket that may still be connecting.

        Raises:
            OSError: it failed at once.
        """

    async def open_disk(self, path: Path, *, write: bool) -> tuple[int, int]:
        """Open a file or block device for a disk that is plugged in: a sealed process cannot.

        Returns a descriptor, the caller's to close, and the size in bytes.

        Raises:
            HypervisorError: it cannot be opened, or this machine may not have it.
        """

    async def confinement(self, child: Child) -> list[ThreadConfinement]:
        """What the kernel reports of each thread of the child in /proc, main thread first.

        Raises:
            ProcessLookupError: the child has exited.
        """

    async def filters_effective(self, child: Child, tid: int, beyond: int = 0) -> bool:
        """Whether the filters on a thread of the child forbid anything, by reading them back.

        beyond: how many of them, the oldest, are not asked: those that it was born with.

        Raises:
            ProcessLookupError: the child has exited.
            SealError: the kernel does not hand the filters out here; the message says why.
        """

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """Make a root directory for a child that will have no other, with its parents.

        root: below the sandbox's directory, on a file system that allows programs and devices. files: by
        their name in the root, files of the host that are seen there and cannot be written. The caller's own
        view of the file system need not have any of it. It goes away with the sandbox.

        Raises:
            HostUnfitError: the host cannot do it.
        """
