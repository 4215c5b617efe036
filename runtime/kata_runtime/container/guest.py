"""What a sandbox's guest is asked for: containers and processes, whatever kind of guest it is.

`pod/linux_guest.py` asks the agent of a Linux guest; `unikernel/guest.py` asks the VMM of a unikernel, which
is the one process there is. The lifetimes of processes, events and streams are the same for both, see
`pod/tasks.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from kata_agent.protos import agent_pb2
    from kata_hypervisor.contract import Disk, Vmm
    from kata_runtime.container.bundle import JsonObject
    from kata_runtime.container.guest_spec import GuestSource
    from kata_runtime.container.process import Container, Process
    from kata_runtime.stdio.files import StdioFiles
    from kata_runtime.stdio.pumps import Stdio

T = TypeVar("T")


class RunStage(Protocol):
    """Runs one stage of a boot, measures it, and names it in errors."""

    async def __call__(self, name: str, work: Awaitable[T]) -> T:
        """Await the work of the stage of this name."""


class Guest(abc.ABC):
    """A guest that is there. Every method may raise RpcError, HypervisorError or UnsupportedError.

    shares_files: whether it sees files of the host. takes_disks: whether a disk can be added while it runs.
    takes_devices: whether one of those may be a block device of the host.
    """

    shares_files: bool
    takes_disks: bool
    takes_devices: bool

    @property
    def machine(self) -> str:
        """How large its machine is now, in words; empty where nobody can say."""
        return ""

    # -- its end -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def failure(self, on_oom: Callable[[str], None]) -> str:
        """Wait until it cannot go on; return the reason, whose first line is for users.

        Never returns for a guest whose end is the exit of its container. on_oom: called with a container's
        id each time the guest's kernel kills a process of it for its memory limit.
        """

    @abc.abstractmethod
    async def stop(self) -> None:
        """End it and its machine; idempotent."""

    # -- containers ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def check_further(self, container: Container) -> None:
        """See that it takes this container beside what it has. Raises UnsupportedError."""

    @abc.abstractmethod
    async def create_container(
        self, container: Container, sources: Mapping[int, GuestSource], files: StdioFiles
    ) -> Stdio:
        """Create a container, its process waiting to be started; return its connected streams.

        sources: where it sees each volume, by its index in the specification's mounts. files: of the
        init process; closed when it fails.
        """

    @abc.abstractmethod
    async def start_container(self, container_id: str) -> None:
        """Let the process of a created container run."""

    @abc.abstractmethod
    async def pause_container(self, container_id: str) -> None:
        """Freeze the processes of a container."""

    @abc.abstractmethod
    async def resume_container(self, container_id: str) -> None:
        """Let the processes of a paused container run again."""

    @abc.abstractmethod
    async def remove_container(self, container_id: str) -> None:
        """Kill what is left of a container and delete it."""

    @abc.abstractmethod
    async def forget_removed_shares(self) -> None:
        """Let go of files of the host that are shared with it no more: it may hold deleted ones open."""

    @abc.abstractmethod
    async def update_container(self, container: Container, limits: JsonObject) -> None:
        """Change the limits of a container (linux.resources), and the machine's size where that grows."""

    @abc.abstractmethod
    async def container_stats(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """Resource usage of a container."""

    # -- processes -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def exec_process(self, process: Process, files: StdioFiles) -> Stdio:
        """Run another process in a container; return its connected streams. files: closed when it fails."""

    @abc.abstractmethod
    async def wait_process(self, process: Process) -> int:
        """Return the exit status of a process once it has exited: 128 + n after signal n."""

    @abc.abstractmethod
    async def signal_process(self, process: Process, number: int, *, everyone: bool) -> None:
        """Send a signal to a process, or to every process of its container."""

    @abc.abstractmethod
    async def resize_terminal(self, process: Process, columns: int, rows: int) -> None:
        """Set the size of a process's terminal."""

    # -- network -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def list_interfaces(self) -> agent_pb2.Interfaces:
        """Its network interfaces with their addresses."""

    @abc.abstractmethod
    async def list_routes(self) -> agent_pb2.Routes:
        """The routes of its main table."""

    # -- disks ---------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def add_disk(self, disk: Disk) -> str:
        """Plug in a disk; return by what the guest finds it."""

    @abc.abstractmethod
    async def remove_disk(self, name: str) -> None:
        """Take out a disk that was plugged in."""


class GuestBoot(abc.ABC):
    """A guest to come: `prepare`, then this process is sealed, then `start`. `stop` undoes all of it."""

    machine: Vmm

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Make the machine; its guest does not run yet."""

    @abc.abstractmethod
    async def start(self, run_stage: RunStage) -> Guest:
        """Bring the guest as far as containers can be created in it. This process is sealed by now."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """End what exists of the machine; idempotent, also after a failed or cancelled step."""
