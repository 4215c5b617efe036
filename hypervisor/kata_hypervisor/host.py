"""What a driver may ask of the host: start a named child, and learn how it exited.

Drivers never fork. The runtime's broker does, and this is the contract between the two. A test double
needs neither root nor a VMM.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement


class ExitStatus(NamedTuple):
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

    @property
    def user(self) -> int:
        """The uid, and gid, that the machine's processes have; another one for each sandbox."""

    @property
    def patience(self) -> float:
        """Seconds for which a driver waits for what answers by itself: a VMM, a helper, the guest's kernel.

        The configuration's, for nobody else knows how busy the host is.
        """

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

    async def register_guest(self, address: int | str) -> None:
        """Before the seal: say where the guest's ports are reached, for `connect_guest`.

        address: the guest's vsock context id, or the path of its VMM's unix socket (hybrid vsock).
        """

    async def listen_for_vmm(self, path: Path) -> socket.socket:
        """Before the seal: listen on a socket in the VMM's directory (`vmm_paths`), to which it connects.

        Raises:
            LaunchError: the host does not do it.
        """

    async def connect_vmm(self, path: Path) -> socket.socket:
        """Before the seal: connect to a socket that the VMM has made below the sandbox's directory.

        Raises:
            OSError: nobody listens there (yet).
        """

    async def hold_monitor(
        self,
        driver: str,
        monitor: socket.socket,
        *,
        saved_to: Path | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> socket.socket:
        """Before the seal: have the host hold a VMM's monitor, which could open whatever the VMM can.

        driver: whose `DriverInfo.monitor_commands` are all that passes once this process is sealed, or whose
        `DriverInfo.api_requests` are from now on. monitor: the connection, the host's from here on. saved_to:
        the directory that the machine may be saved in. limits: what limits each disk that comes later, as the
        API has it; None for none. Returns another one, to use in its place.

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

    async def give_device(self, path: Path, *, write: bool) -> None:
        """Send a block device of the host, open, to the VMM with the next command to its monitor.

        path: /dev/block/MAJOR:MINOR.

        Raises:
            HypervisorError: it cannot be opened, somebody else uses it, or this machine may not have it.
        """

    async def show_disk(self, name: str, path: Path, *, write: bool) -> Path:
        """Let the VMM open a file or block device as a disk that it is given while it runs.

        name: the disk's, see `api_request.NAME`. path: of a device /dev/block/MAJOR:MINOR, which is this
        machine's alone from then on. Returns the path at which the VMM sees it.

        Raises:
            HypervisorError: it cannot be seen there, somebody else uses it, or this machine may not have it.
        """

    async def hide_disk(self, name: str) -> None:
        """Take away what `show_disk` lets the VMM see, which has let it go; nothing for an unknown disk."""

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

    async def end_loading(self, child: Child) -> None:
        """Say that the child has loaded: its `ChildFilter` allows no more than it needs from here on.

        Raises:
            ProcessLookupError: the child has exited, or has no such filter.
        """

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """Make a root directory for a child that will have no other, with its parents.

        root: below the sandbox's directory, on a file system that allows programs and devices. files: by
        their name in the root, files of the host that are seen there and cannot be written. The caller's own
        view of the file system need not have any of it. It goes away with the sandbox.

        Raises:
            HostUnfitError: the host cannot do it.
        """
