"""What the handlers of operations act on: the parts of one broker, each in a module of its own."""

from __future__ import annotations

import os
import socket

from kata_hypervisor import registry
from kata_runtime.broker import cleanup, messages, processes
from kata_runtime.broker.authorization import Authorization
from kata_runtime.broker.children import Children
from kata_runtime.broker.connections import Connections
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.files import Files
from kata_runtime.broker.images import Images
from kata_runtime.broker.kvm import Kvm
from kata_runtime.broker.log_sink import LogSink, take_fatal_message
from kata_runtime.broker.monitor import Monitor
from kata_runtime.broker.phase import Phase
from kata_runtime.broker.pod_identity import PodIdentity
from kata_runtime.broker.pod_network import PodNetwork
from kata_runtime.broker.sandbox_cgroup import SandboxCgroup
from kata_runtime.broker.shim_privileges import find_privilege
from kata_runtime.broker.streams import Streams
from kata_runtime.broker.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.event_loop import EventLoop
    from kata_runtime.broker.messages import Message
    from kata_runtime.broker.sandbox_directory import SandboxDirectory
    from kata_runtime.broker.send_queue import SendQueue
    from kata_runtime.identity import SandboxIdentity


class Context:
    """One sandbox, as its broker has it. shim: the shim's process id.

    bundle: the sandbox's. events: path of containerd's event socket, empty for none.
    """

    def __init__(
        self,
        identity: SandboxIdentity,
        directory: SandboxDirectory,
        bundle: str,
        events: str,
        loop: EventLoop,
        queue: SendQueue,
    ) -> None:
        self._identity = identity
        self._bundle = bundle
        self._queue = queue
        self._loop = loop
        self._monitors: list[Monitor] = []
        self._closing = False
        self._left: list[str] | None = None
        journal = directory.journal
        self._shim: tuple[int, int] = tuple(journal.header["shim"])
        log_sink = LogSink(bundle, identity.id)
        self.directory = directory
        self.authorization = Authorization(bundle, identity.id)
        self.cgroup = SandboxCgroup(identity, self.shim, journal)
        self.pod = PodIdentity(identity, journal)
        self.children = Children(self.shim, self.pod, journal, loop, log_sink, self._notify)
        self.connections = Connections(events, identity.directory, directory.descriptor)
        self.files = Files(directory, self.authorization)
        self.images = Images(directory, self.files, self.children)
        self.kvm = Kvm()
        self.network = PodNetwork(directory.descriptor, identity.directory, journal, self.children)
        self.streams = Streams(self.authorization)
        self.supervisor = Supervisor(self._shim, loop, log_sink, directory.descriptor, self._notify)

    @property
    def shim(self) -> int:
        """The shim's process id."""
        return self._shim[0]

    @property
    def closing(self) -> bool:
        """Whether the shim has closed the sandbox."""
        return self._closing

    def _notify(self, message: Message) -> None:
        self._queue.put(messages.encode(message))

    def hold_monitor(self, driver: str, connection: int) -> int:
        """Hold a VMM's monitor; see `Monitor`. Returns the descriptor of the shim's end of it.

        Raises:
            RequestRefusedError: the driver's VMM has none.
        """
        commands = registry.info_of(driver).monitor_commands
        if not commands:
            raise RequestRefusedError(f"hold_monitor: the driver {driver} has no monitor")
        monitor = Monitor(
            socket.socket(fileno=os.dup(connection)),
            commands,
            self._loop,
            lambda: self.authorization.phase is Phase.SEALED,
            self.supervisor.end_pod,
        )
        self._monitors.append(monitor)
        return monitor.hand_over()

    def verify_shim(self) -> None:
        """Raise RequestRefusedError unless the shim is the pod's user, without any capability."""
        if (found := find_privilege(self.shim, self.pod.user)) is not None:
            raise RequestRefusedError(
                f"the shim kept privileges that it must give up, so the pod is not started: {found}"
            )

    def seal(self, policy: str, *, enforce: bool) -> None:
        """The shim is about to put its filter on; see `Supervisor.expect`."""
        self.supervisor.expect(policy, enforce=enforce)
        self.authorization.seal()

    def close(self) -> list[str]:
        """The shim asks for the end; as `finish`."""
        self._closing = True
        left = self.finish()
        take_fatal_message(self._bundle)  # the shim has reported it itself
        return left

    def finish(self) -> list[str]:
        """Undo everything, once; returns a line for each thing that is left."""
        if self._left is None:
            self.children.kill_all()
            # A shim that closes its broker has its last answers to give; any other ends with its cgroup.
            spared = {os.getpid()}
            if self._closing and processes.is_alive(*self._shim):
                spared.add(self.shim)
            self._left = self.directory.roll_back(spared)
            self.network.close()
            self.children.reap()  # those that the journal knew and the kernel did not list
            # A shim that closes its broker serves nobody any more either.
            cleanup.unlink(self._identity.socket)
        return self._left
