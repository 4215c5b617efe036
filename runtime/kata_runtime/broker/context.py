"""What the handlers of operations act on: the parts of one broker, each in a module of its own."""

from __future__ import annotations

import base64
import os
import socket
import time

from kata_hypervisor import registry
from kata_runtime.broker import cleanup, device_rules, messages, pod_confinement, processes
from kata_runtime.broker.authorization import Authorization
from kata_runtime.broker.block_devices import BlockDevices
from kata_runtime.broker.children import Children
from kata_runtime.broker.connections import Connections
from kata_runtime.broker.container_logs import ContainerLogs
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.files import Files
from kata_runtime.broker.hooks import Hooks
from kata_runtime.broker.images import Images
from kata_runtime.broker.kvm import Kvm
from kata_runtime.broker.log_relay import LogRelay
from kata_runtime.broker.log_sink import LogSink, take_fatal_message
from kata_runtime.broker.logger import Logger
from kata_runtime.broker.monitor import CommandFilter, Monitor
from kata_runtime.broker.phase import Phase
from kata_runtime.broker.pinning import Pinning
from kata_runtime.broker.pod_identity import PodIdentity
from kata_runtime.broker.pod_network import PodNetwork
from kata_runtime.broker.reserve import Reserve
from kata_runtime.broker.sandbox_cgroup import SandboxCgroup
from kata_runtime.broker.streams import Streams
from kata_runtime.broker.supervisor import Supervisor
from kata_runtime.broker.vmm_directory import VmmDirectory
from kata_runtime.broker.volumes import Volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kata_runtime.broker.event_loop import EventLoop
    from kata_runtime.broker.messages import Message
    from kata_runtime.broker.monitor import Filter
    from kata_runtime.broker.rollback import Entry
    from kata_runtime.broker.sandbox_directory import SandboxDirectory
    from kata_runtime.broker.send_queue import SendQueue
    from kata_runtime.confinement.facts import Place
    from kata_runtime.identity import SandboxIdentity

MAX_REFUSALS = 100
"""Refused requests of a sealed shim that are logged; whoever owns it cannot fill the log with more. How many
more there were is said at the end."""

FAREWELL = 2.0
"""Seconds that containerd may take to read the last lines."""


class Context:
    """One sandbox, as its broker has it. shim: the shim's process id.

    bundle: the sandbox's. events: path of containerd's event socket, empty for none. host: where the runtime
    was started.
    """

    def __init__(
        self,
        identity: SandboxIdentity,
        directory: SandboxDirectory,
        bundle: str,
        events: str,
        loop: EventLoop,
        queue: SendQueue,
        host: Place,
    ) -> None:
        self._identity = identity
        self._bundle = bundle
        self._queue = queue
        self._loop = loop
        self._host = host
        self._monitors: list[Monitor] = []
        self._closing = False
        self._left: list[str] | None = None
        # Entries of the journal about the cgroup of a shim that has closed the sandbox and still runs.
        self._held: list[Entry] = []
        journal = directory.journal
        self._shim: tuple[int, int] = tuple(journal.header["shim"])
        self._refusals = 0
        self._log_sink = log_sink = LogSink(bundle, identity.id, loop)
        self.log_relay = LogRelay(log_sink, loop)
        self.directory = directory
        self._reserve = Reserve(directory.descriptor)
        self.authorization = Authorization(bundle, identity.id)
        self.cgroup = SandboxCgroup(identity, self.shim, journal)
        self.pod = PodIdentity(identity, journal)
        self.vmm = VmmDirectory(identity.directory, self._user, namespace=directory.has_namespace)
        self.children = Children(self.shim, self.pod, self.vmm, journal, loop, log_sink, self._notify)
        self.pinning = Pinning(self.shim, self.cgroup, self.children, journal)
        self.connections = Connections(events, identity.directory, directory.descriptor, self._user)
        self.files = Files(identity, directory, self.authorization)
        self.volumes = Volumes(directory, self.files, self.authorization, self._servers)
        self.hooks = Hooks(identity, bundle, directory.descriptor, directory.origin, journal, log_sink)
        self.logger = Logger(identity, directory.origin, journal)
        self.images = Images(directory, self.files, self.children, self.vmm)
        self.block_devices = BlockDevices(self.authorization.devices, self.cgroup, self.vmm)
        self.kvm = Kvm()
        self.network = PodNetwork(directory.descriptor, identity.directory, journal, self.children)
        self.streams = Streams(self.authorization)
        self.logs = ContainerLogs(loop)
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

    def report_refusal(self, name: object, error: Exception) -> None:
        """Log what a sealed shim asked for in vain: a guest may own it, and would not log it itself."""
        if self.authorization.phase is not Phase.SEALED or not isinstance(error, RequestRefusedError):
            return
        self._refusals += 1
        if self._refusals <= MAX_REFUSALS:
            asked, why = str(name)[:40], str(error)[:1000]
            self._log_sink.write("warning", f"refused what the sealed shim asked for: {asked}: {why}")

    def relay_log(self) -> int:
        """See `LogRelay.open`. Raises RequestRefusedError: it was asked for before."""
        if self.log_relay.is_open:
            raise RequestRefusedError("relay_log: the broker passes the shim's log on already")
        return self.log_relay.open()

    def hold_monitor(self, driver: str, saved: str | None, connection: int) -> int:
        """Hold a VMM's monitor; see `Monitor`. Returns the descriptor of the shim's end of it.

        saved: the directory that the machine may be saved in.

        Raises:
            RequestRefusedError: the driver's VMM has none.
        """
        info = registry.info_of(driver)
        rules: Filter
        sealed: Callable[[], bool] | None
        if info.monitor_commands:
            rules = CommandFilter(info.monitor_commands)
            sealed = self._is_sealed
        elif info.api_requests:
            from kata_runtime.broker.api_filter import RequestFilter

            rules = RequestFilter(info.api_requests, self.vmm.shown, saved)
            sealed = None
        else:
            raise RequestRefusedError(f"hold_monitor: the driver {driver} has no monitor")
        vmm = socket.socket(fileno=os.dup(connection))
        monitor = Monitor(vmm, rules, self._loop, sealed, self.supervisor.end_pod)
        self._monitors.append(monitor)
        return monitor.hand_over()

    def give_device(self, device: str, *, write: bool) -> None:
        """Open a block device for the VMM, which gets it with the next command to its monitor.

        Raises:
            RequestRefusedError: there is no such VMM, or the sandbox may not have the device.
            RequestFailedError: it cannot be opened.
        """
        if len(self._monitors) != 1:
            raise RequestRefusedError(f"cannot give the block device {device}: there is no monitor for it")
        if self._monitors[0].gives:
            raise RequestRefusedError(f"cannot give the block device {device}: another has not gone yet")
        self._monitors[0].give(self.block_devices.open(device, write=write))

    def verify_confinement(self, *, landlock: bool, sealed: bool, required: Sequence[str]) -> list[str]:
        """Hold the pod's processes to their rows; see `pod_confinement.verify`.

        Returns a sentence for each mechanism that this host lacks.
        """
        found = pod_confinement.verify(
            self.shim,
            self.pod.init,
            {**self.children.roles, **self.hooks.roles, **self.logger.roles},
            host=self._host,
            user=self.pod.user,
            outside=self.network.is_outside,
            landlock=landlock,
            sealed=sealed,
            controllers=self.cgroup.controllers(),
            required=required,
        )
        pod_confinement.record(self.directory.descriptor, found)
        return list(found["lacking"].values())

    def _servers(self) -> list[int]:
        return self.children.serving

    def _user(self) -> int:
        return self.pod.user

    def _is_sealed(self) -> bool:
        return self.authorization.phase is Phase.SEALED

    def confine(self, features: list[str], code: str) -> str:
        """Give up what is not needed after the seal: devices, and see `self_confinement.confine`.

        Returns what this host lacks for it, in a sentence, or nothing.
        """
        from kata_runtime.broker import self_confinement

        rules = device_rules.of_pod(
            self.children.devices, self.authorization.block_devices, images="images" in features
        )
        lacking = self.cgroup.restrict_devices(rules)
        self_confinement.confine(features, base64.b64decode(code))
        return lacking

    def seal(self, policy: str, *, enforce: bool, within: float) -> None:
        """The shim is about to put its filter on; see `Supervisor.expect`."""
        self.supervisor.expect(policy, enforce=enforce, within=within)
        self.authorization.seal()

    @property
    def outlives_shim(self) -> bool:
        """Whether the broker stays until the shim has exited, when all else is undone."""
        return bool(self._held) or (self.log_relay.is_open and self._closing)

    def outlive_shim(self) -> None:
        """Keep a shim that has closed the sandbox in the pod's cgroup until it exits, which it must do soon.

        A guest may own it: without its cgroup it could have all memory and processors of the host. What it
        logs meanwhile is passed on.
        """
        deadline = time.monotonic() + processes.GRACE
        self.log_relay.follow(processes.GRACE)
        self._log_sink.drain(FAREWELL)
        if self._held:
            processes.wait(*self._shim, max(0.0, deadline - time.monotonic()))
            processes.end(*self._shim)
            cleanup.end_cgroups(self._held)

    def close(self) -> list[str]:
        """The shim asks for the end; as `finish`."""
        self._closing = True
        left = self.finish()
        take_fatal_message(self._bundle)  # the shim has reported it itself
        return left

    def finish(self) -> list[str]:
        """Undo everything, once; returns a line for each thing that is left."""
        if self._left is None:
            self._reserve.release()
            if (more := self._refusals - MAX_REFUSALS) > 0:
                sentence = f"refused what the sealed shim asked for: {more} more times, not logged one by one"
                self._log_sink.write("warning", sentence)
            self.children.kill_all({**self.hooks.roles, **self.logger.roles})
            kept = self.hooks.finish()
            self.logger.finish()
            self.children.kill_all()
            self.logs.close()
            # A shim that closes its broker has its last answers to give; any other ends with its cgroup.
            spared = {os.getpid()}
            if self._closing and processes.is_alive(*self._shim):
                spared.add(self.shim)
                if self._is_sealed():
                    self._held = self.directory.journal.withhold(cleanup.CGROUPS)
            self.vmm.close()
            self._left = self.directory.roll_back(spared, kept)
            self.network.close()
            self.children.reap()  # those that the journal knew and the kernel did not list
            # A shim that closes its broker serves nobody any more either.
            cleanup.unlink(self._identity.socket)
        return self._left
