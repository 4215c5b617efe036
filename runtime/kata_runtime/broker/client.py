"""The shim's side of the broker: its operations as coroutines, its children as objects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import signal
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio

from kata_hypervisor.concurrency import finish
from kata_hypervisor.errors import HostUnfitError, LaunchError, NotSupportedError, SealError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement
from kata_runtime.broker import hook_declaration, image_cache, messages
from kata_runtime.broker.child import BrokerChildren
from kata_runtime.broker.errors import BrokerError, BrokerLostError, RequestFailedError
from kata_runtime.broker.operations import (
    cgroup,
    children,
    connections,
    files,
    hooks,
    host,
    images,
    lifecycle,
    network,
    streams,
)
from kata_runtime.broker.request_channel import RequestChannel
from kata_runtime.broker.shared_source import SharedSource
from kata_runtime.identity import MAX_SPEC

if TYPE_CHECKING:
    from kata_runtime.broker.messages import Message
    from kata_runtime.broker.operations.declaration import Reply

UNTIL_CONFIGURED = 300.0
"""Seconds of `patience` while no configuration is read: for the first container's bundle and streams."""

DEVICES = Path("/dev/block")
_PLUGGED = "only a block device of the host, or read-only an image of a root file system"

Mount = tuple[str, str, Sequence[str]]
"""A mount as containerd gives it: type, source, options."""


class Broker:
    """The broker of a sandbox; a `kata_hypervisor.host.Host`. Made within a running event loop.

    Every method raises BrokerLostError when the broker has exited, RequestRefusedError when the arguments
    break the operation's schema or reach outside of the sandbox, and RequestFailedError when the host could
    not do what was asked. A caller that is cancelled learns so at its next checkpoint, with the child or the
    descriptor in its hands.

    lost: set when the broker has exited without having been closed; `fault` then says what is known. Its
    children have been killed by the kernel, and are reported so.
    violated: set when our own filter refused a call; `violation` is the broker's sentence about it, and the
    broker will end this process.
    user: the pod's uid and gid, -1 until `take_user`.
    patience: seconds for which the answer to a request is waited for; see also `Host.patience`. A broker that
    takes longer is given up as one that has exited: it undoes everything as soon as it looks up again.
    later: what it must still be able to do after the seal for what it did before: features of its policy.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self.lost = anyio.Event()
        self.violated = anyio.Event()
        self.violation = ""
        self.user = -1
        self.patience = UNTIL_CONFIGURED
        self.later: set[str] = set()
        reason = f"the broker (process {pid}) has exited"
        self._channel = RequestChannel(
            channel, reason, self._on_notice, self._on_lost, patience=lambda: self.patience
        )
        self._request = self._channel.request
        self._children = BrokerChildren(self.kill)
        self._process = os.pidfd_open(pid)
        self._closing = False
        self._end: asyncio.Task[list[str]] | None = None
        self._bundle_gone = anyio.Event()
        self._gone = anyio.Event()

    @property
    def fault(self) -> str:
        """Why the sandbox cannot go on, as the broker knows it; empty when it can."""
        return self.violation or (self._channel.reason if self.lost.is_set() else "")

    async def bundle_gone(self) -> None:
        """Return when the broker next reports that the sandbox's bundle does not exist any more."""
        await self._bundle_gone.wait()
        self._bundle_gone = anyio.Event()

    def _on_notice(self, message: Message) -> None:
        match message:
            case {"exited": pid}:
                self._children.on_exited(pid, ExitStatus(message.get("code"), message.get("signal")))
            case {"refused": pid, "sentence": sentence}:
                self._children.on_refused(pid, sentence)
            case {"violation": sentence}:
                self.violation = sentence
                self.violated.set()
            case {"bundle": "gone"}:
                self._bundle_gone.set()
            case {"failed": reason}:
                self._channel.reason = reason

    def _on_lost(self) -> None:
        if not self._closing:
            self.lost.set()
        self._children.on_lost()
        asyncio.get_running_loop().add_reader(self._process, self._on_gone)

    def _on_gone(self) -> None:
        """It has exited, or stands still and is left to `shim delete`."""
        # Not waited for: the shim ignores SIGCHLD, so the kernel does it (sigaction(2), SA_NOCLDWAIT).
        asyncio.get_running_loop().remove_reader(self._process)
        os.close(self._process)
        self._gone.set()

    # -- the sandbox ---------------------------------------------------------------------------------------

    async def prepare(self, path: str | None, *, pinning: bool) -> str:
        """Make the sandbox's cgroup and move shim and broker into it; once, before any child is started.

        path: the specification's linux.cgroupsPath. pinning: whether `pin_vcpus` may follow. Returns the
        cgroup's path within each hierarchy.
        """
        reply = await self._request(cgroup.prepare, cgroup=path, pinning=pinning)
        return str(reply.result["path"])

    async def pin_vcpus(self, cpus: Sequence[int]) -> None:
        """Keep each virtual CPU on one CPU of the host, in this order; with none, let all of them go.

        Raises:
            RequestFailedError: the pod's cgroup lacks one of them, or the VMM's threads are not as many.
        """
        await self._request(cgroup.pin_vcpus, cpus=list(cpus))

    async def take_user(self, base: int, count: int) -> int:
        """Take a uid of the range [base, base + count) for the pod; once, before its children."""
        self.user = int((await self._request(children.take_user, base=base, count=count)).result["uid"])
        return self.user

    async def verify_confinement(self, *, landlock: bool, sealed: bool, required: Sequence[str]) -> list[str]:
        """Have every process of the pod held to what it must be; this one has given up its privileges.

        landlock: whether this process was denied a file that it tried to open. sealed: whether it will have
        a filter. required: the mechanisms without which it is refused. Returns a sentence for each mechanism
        that this host lacks.
        """
        reply = await self._request(
            lifecycle.verify_confinement, landlock=landlock, sealed=sealed, required=list(required)
        )
        return [str(sentence) for sentence in reply.result["lacking"]]

    async def oom_kills(self) -> int:
        """How many processes of the sandbox's cgroup the kernel has killed for want of memory."""
        reply = await self._request(cgroup.oom_kills)
        return int(reply.result["count"])

    async def missing_kvm_support(self) -> str:
        """Why this host's KVM runs no unmodified guests, in a sentence; empty where it does, or is none."""
        found = (await self._request(host.probe_kvm)).result
        return "" if found["runs_unmodified_guests"] or not found["usable"] else str(found["reason"])

    async def confine(self, code: bytes, features: Collection[str]) -> str:
        """Have the broker give up what it does not need after the seal, and the pod's devices with it.

        code: its filter. features: what it was compiled for. Returns what this host lacks for it, in a
        sentence, or nothing. RequestFailedError: it is not confined. `announce_seal` comes next.
        """
        encoded = base64.b64encode(code).decode()
        reply = await self._request(lifecycle.confine_broker, features=sorted(features), code=encoded)
        return str(reply.result["lacking"])

    async def announce_seal(self, *, mode: str, policy: str) -> None:
        """Report that this process is about to be sealed: from here on a request must fit what was learned.

        mode: "enforce" or "log". policy: its name, for sentences. `supervise` must follow within `patience`,
        or the broker kills this process.
        """
        within = max(1, math.ceil(self.patience))
        await self._request(lifecycle.announce_seal, mode=mode, policy=policy, within=within)

    async def supervise(self, listener: int) -> list[ThreadConfinement]:
        """Hand over the listener of our own filter; returns what the kernel reports of our threads."""
        return _threads(await self._request(lifecycle.supervise, descriptors=[listener]))

    async def relay_log(self) -> int:
        """Have our log passed on to containerd; returns a descriptor to write it to, the caller's."""
        return _only(await self._request(lifecycle.relay_log))

    async def close(self) -> list[str]:
        """Undo everything and end the broker; returns once it has exited. Idempotent.

        The broker of a sealed shim exits after the shim, which is killed when it does not exit soon.

        Returns one line for each thing that could not be undone: `shim delete` will try these again. When the
        broker was lost before, nothing is undone here: that is for `cleanup.clean_up`. One that stands still
        is not waited for. Whoever asks while it is being done, or later, is answered with the first.
        """
        if self._end is None:
            self._end = asyncio.ensure_future(self._close())
        return await finish(self._end)

    async def _close(self) -> list[str]:
        left: list[str] = []
        if self._channel.is_open:
            self._closing = True
            try:
                reply = await self._request(lifecycle.close)
                left = reply.result["left"]
                if reply.result["outlives"]:
                    return left
            except BrokerLostError:
                left = [self._channel.reason]
            except RequestFailedError as error:  # it ends, and `shim delete` undoes the rest
                left = [f"the broker could not undo everything: {error}"]
        if self._channel.gave_up:
            if not self._gone.is_set():
                self._on_gone()
            return [self._channel.reason]
        await self._gone.wait()
        return left

    # -- children: kata_hypervisor.host.Host ---------------------------------------------------------------

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
        """Start a child; see `kata_hypervisor.host.Host.spawn`. Raises LaunchError."""
        try:
            reply = await self._request(
                children.spawn,
                name=name,
                argv=list(argv),
                fds=list(fds),
                environment=None if environment is None else dict(environment),
                gate=gate,
                seccomp=None if seccomp is None else seccomp.to_json(),
                privileges=None if privileges is None else privileges.to_json(),
                descriptors=list(fds.values()),
            )
        except RequestFailedError as error:
            raise LaunchError(str(error)) from None
        except BrokerError as error:
            raise LaunchError(f"cannot start {name}: {error}") from None
        if seccomp is not None and seccomp.loading and gate is not None:
            self.later.add("loading")
        return self._children.add(name, reply.result["pid"])

    async def kill(self, child: Child, number: int = signal.SIGKILL) -> None:
        """Send a signal to a child; nothing when it has exited."""
        try:
            await self._request(children.kill, pid=child.pid, signal=int(number))
        except BrokerLostError:
            return  # the kernel has killed it

    async def confinement(self, child: Child) -> list[ThreadConfinement]:
        """What the kernel reports of each thread of the child, main thread first.

        Raises:
            ProcessLookupError: the child has exited.
        """
        try:
            return _threads(await self._request(children.confinement, pid=child.pid))
        except RequestFailedError as error:
            raise _os_error(error) from None

    async def filters_effective(self, child: Child, tid: int, beyond: int = 0) -> bool:
        """See `kata_hypervisor.host.Host`. Raises ProcessLookupError, SealError."""
        try:
            reply = await self._request(children.filters_effective, pid=child.pid, tid=tid, beyond=beyond)
        except RequestFailedError as error:
            raise _os_error(error) from None
        if reply.result["unknown"]:
            raise SealError(reply.result["unknown"])
        return bool(reply.result["effective"])

    async def end_loading(self, child: Child) -> None:
        """See `kata_hypervisor.host.Host`. Raises ProcessLookupError."""
        try:
            await self._request(children.end_loading, pid=child.pid)
        except RequestFailedError as error:
            raise _os_error(error) from None

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """Make a root directory for a child; see `kata_hypervisor.host.Host`. Once for each sandbox."""
        try:
            await self._request(
                children.make_jail,
                root=str(root),
                files={name: str(path) for name, path in files.items()},
            )
        except RequestFailedError as error:
            raise HostUnfitError(str(error)) from None

    # -- files ---------------------------------------------------------------------------------------------

    async def read_spec(self, bundle: str) -> bytes:
        """A container's config.json, up to MAX_SPEC + 1 bytes; what it names may then be shared."""
        reply = await self._request(files.open_spec, bundle=bundle)
        (fd,) = reply.descriptors
        raw = b""
        try:
            while len(raw) <= MAX_SPEC and (chunk := os.read(fd, MAX_SPEC + 1 - len(raw))):
                raw += chunk
        finally:
            os.close(fd)
        return raw

    async def make_directory(self, path: str) -> None:
        """Make a directory below the shared directory, with its parents; one that exists is left as it is."""
        await self._request(files.make_directory, path=path)

    async def mount(self, target: str, mounts: Sequence[Mount]) -> None:
        """Mount several, the later on top, on a directory that is made if missing; all or nothing."""
        wanted: list[list[object]] = [[kind, source, list(options)] for kind, source, options in mounts]
        await self._request(files.mount, target=target, mounts=wanted)

    async def bind(self, source: str, target: str, *, readonly: bool, recursive: bool = True) -> None:
        """Share a file or directory of the host; the target is made to match it.

        readonly holds for the mounts below the source too. What is mounted below it on the host later is not
        shared.
        """
        await self._request(files.bind, source=source, target=target, readonly=readonly, recursive=recursive)

    async def find_memory(self, source: str) -> dict[str, Any] | None:
        """What a source is of memory that the host has made for the pod, see source_facts; else None."""
        reply = await self._request(files.find_memory, source=source)
        return cast("dict[str, Any] | None", reply.result["memory"])

    async def share(
        self, source: str, *, readonly: bool, recursive: bool = True, readonly_below: bool = False
    ) -> SharedSource:
        """Share a file or directory of the host as a volume, once for all containers; `unshare` undoes it.

        readonly_below: whether what is mounted below it is read-only too, if it comes along. A block device
        is not shared: it may be plugged in (`give_device`).
        """
        reply = await self._request(
            files.share,
            source=source,
            readonly=readonly,
            recursive=recursive,
            readonly_below=readonly_below,
        )
        return SharedSource(**reply.result)

    async def unshare(self, place: str) -> None:
        """Undo one `share`, by the place that it answered."""
        await self._request(files.unshare, place=place)

    async def show_root(self, target: str) -> None:
        """Make what is mounted there the root of the pod's init: for who copies files by /proc/PID/root."""
        await self._request(files.show_root, target=target)

    async def unmount(self, target: str) -> None:
        """Undo `mount` or `bind`, all that is stacked there; what is in use is detached. The target stays."""
        await self._request(files.unmount, target=target)

    async def remove(self, path: str) -> None:
        """Remove an empty directory, or a file, that was made by `make_directory`, `mount` or `bind`."""
        await self._request(files.remove, path=path)

    # -- standard streams ----------------------------------------------------------------------------------

    async def open_fifo(self, path: str, mode: str) -> int:
        """Open a FIFO without blocking; the descriptor is the caller's. mode: "r", "w" or "rw".

        With "w", RequestFailedError with ENXIO says that nobody reads it.
        """
        return _only(await self._request(streams.open_fifo, path=path, mode=mode))

    async def open_log(self, path: str) -> int:
        """Have a pipe appended to a regular file, which is made where it is missing.

        The descriptor to write to, which does not block, is the caller's.
        """
        return _only(await self._request(streams.open_log, path=path))

    async def settle_logs(self) -> None:
        """Return when what the broker has taken out of the pipes of logs is in their files."""
        # It does one thing at a time, so any answer says so.
        with contextlib.suppress(BrokerError):  # the pod ends with its broker
            await self.oom_kills()

    async def start_logger(self, uri: str) -> tuple[int, int]:
        """Start the program that takes the first container's output; returns once it says that it is ready.

        uri: of containerd, binary:// or binary-v2://, of which the second must say so by a byte. Returns the
        pipes for standard output and error, which do not block; the caller's.

        Raises:
            RequestFailedError: it is no such URI, or the program does not run.
        """
        ready, *outputs = (await self._request(streams.start_logger, uri=uri)).descriptors
        try:
            await anyio.wait_readable(ready)
            if not os.read(ready, 1) and uri.startswith("binary-v2:"):
                raise RequestFailedError(
                    f"the logger of {uri!r} ended before it was ready: it writes a byte to descriptor 5 first"
                )
        except BaseException:
            messages.close_all(outputs)
            raise
        finally:
            os.close(ready)
        stdout, stderr = outputs
        return stdout, stderr

    # -- images --------------------------------------------------------------------------------------------

    async def open_in_image(self, root: str, name: str, *, write: bool) -> int:
        """Open a regular file or block device in what was mounted at `root`; the descriptor is the caller's.

        name: a path in there, which leaves it neither by a link nor by "..".
        """
        return _only(await self._request(images.open_in_image, root=root, name=name, write=write))

    async def make_image(self, root: str) -> tuple[Child, int]:
        """Let a program make an image of what is mounted at `root`, below the shared directory.

        Returns the program, and what it writes as a descriptor that does not block, the caller's to close;
        see `kata_runtime.broker.rootfs_image`.
        """
        reply = await self._request(images.make_image, root=root)
        return self._children.add(image_cache.ROLE, reply.result["pid"]), _only(reply)

    async def open_disk(self, path: Path, *, write: bool) -> tuple[int, int]:
        """See `kata_hypervisor.host.Host`.

        There are images of root file systems, and the devices that the containers' specifications give.
        """
        if path.parent == DEVICES:
            return await self._open_device(path.name, write=write)
        if write or path.parent != Path(image_cache.CACHE) or path.suffix != image_cache.SUFFIX:
            raise NotSupportedError(f"cannot plug {path}: {_PLUGGED}")
        try:
            reply = await self._request(images.open_image, name=path.stem)
        except BrokerError as error:
            raise LaunchError(str(error)) from None
        return _only(reply), reply.result["size"]

    async def _open_device(self, device: str, *, write: bool) -> tuple[int, int]:
        try:
            reply = await self._request(images.open_device, device=device, write=write)
        except BrokerError as error:
            raise LaunchError(str(error)) from None
        return _only(reply), reply.result["size"]

    async def give_device(self, path: Path, *, write: bool) -> None:
        """See `kata_hypervisor.host.Host`; there are those that the containers' specifications give."""
        try:
            await self._request(images.give_device, device=path.name, write=write)
        except BrokerError as error:
            raise LaunchError(str(error)) from None

    async def show_disk(self, name: str, path: Path, *, write: bool) -> Path:
        """See `kata_hypervisor.host.Host`; there is what `open_disk` has."""
        is_image = path.parent == Path(image_cache.CACHE) and path.suffix == image_cache.SUFFIX
        try:
            if path.parent == DEVICES:
                reply = await self._request(images.show_device, disk=name, device=path.name, write=write)
            elif is_image and not write:
                reply = await self._request(images.show_image, disk=name, image=path.stem)
            else:
                raise NotSupportedError(f"cannot plug {path}: {_PLUGGED}")
        except BrokerError as error:
            raise LaunchError(str(error)) from None
        return Path(reply.result["path"])

    async def hide_disk(self, name: str) -> None:
        """See `kata_hypervisor.host.Host`."""
        await self._request(images.hide_image, disk=name)

    # -- network -------------------------------------------------------------------------------------------

    async def learn_network(self, path: str | None, *, outside: bool) -> int:
        """Learn the pod's namespace at a path, or have one made; once. Returns the pid of the pod's init.

        outside: whether the VMM and its helpers stay in the host's network namespace. The init is in the
        pod's as long as the broker runs. RequestFailedError says why it cannot be a pod's.
        """
        return int((await self._request(network.learn_network, path=path, outside=outside)).result["pid"])

    async def network_state(self) -> tuple[list[str], bool]:
        """The interfaces of the pod's namespace, and whether one has an address that is not link-local."""
        reply = await self._request(network.network_state)
        return [str(name) for name in reply.result["interfaces"]], bool(reply.result["configured"])

    async def attach_network(self, channel: socket.socket) -> None:
        """Start the network program in the pod's namespace, to answer over this channel; once.

        See `kata_runtime.network.exchange`.
        """
        reply = await self._request(network.attach_network, descriptors=[channel.fileno()])
        self.later.add("network")
        self._children.add("network", reply.result["pid"])

    async def open_tap(self, tap: str, queues: int) -> list[int]:
        """Open the queues of a tap that the operator has made on the host. Raises RequestFailedError."""
        return list((await self._request(network.open_tap, tap=tap, queues=queues)).descriptors)

    async def late_interfaces(self) -> list[str]:
        """Names of the interfaces that a namespace of the broker's making has got since it was attached."""
        return [str(name) for name in (await self._request(network.late_interfaces)).result["names"]]

    # -- hooks ---------------------------------------------------------------------------------------------

    async def learn_hooks(self) -> list[str]:
        """Have the hooks in the sandbox's bundle learned, once; returns the kinds that there are."""
        return [str(kind) for kind in (await self._request(hooks.learn_hooks)).result["kinds"]]

    async def run_hooks(self, kind: str) -> list[str]:
        """Run the hooks of a kind, once; returns a sentence for each that failed.

        A caller that is cancelled has the hook killed that runs.
        """
        answer = _only(await self._request(hooks.run_hooks, kind=kind))
        data = b""
        try:
            while True:
                await anyio.wait_readable(answer)
                try:
                    piece = os.read(answer, 1 << 16)
                except BlockingIOError:
                    continue
                if not piece:
                    return hook_declaration.failures(data, kind)
                data += piece
        finally:
            os.close(answer)

    # -- connections ---------------------------------------------------------------------------------------

    async def register_guest(self, address: int | str) -> None:
        """See `kata_hypervisor.host.Host.register_guest`."""
        await self._request(connections.register_guest, address=address)
        if isinstance(address, int):
            self.later.add("vsock")

    async def listen_for_vmm(self, path: Path) -> socket.socket:
        """See `kata_hypervisor.host.Host.listen_for_vmm`."""
        try:
            reply = await self._request(connections.listen_for_vmm, path=str(path))
        except BrokerError as error:
            raise LaunchError(str(error)) from None
        return socket.socket(fileno=_only(reply))  # it blocks: who gets it waits in accept(2)

    async def connect_vmm(self, path: Path) -> socket.socket:
        """See `kata_hypervisor.host.Host.connect_vmm`."""
        try:
            return _socket(await self._request(connections.connect_vmm, path=str(path)))
        except RequestFailedError as error:
            raise _os_error(error) from None

    async def hold_monitor(
        self, driver: str, monitor: socket.socket, *, saved_to: Path | None = None
    ) -> socket.socket:
        """See `kata_hypervisor.host.Host.hold_monitor`."""
        saved = None if saved_to is None else str(saved_to)
        try:
            reply = await self._request(
                connections.hold_monitor, driver=driver, saved=saved, descriptors=[monitor.fileno()]
            )
        except BrokerError as error:
            raise LaunchError(f"cannot hold the monitor of {driver}: {error}") from None
        monitor.close()
        return _socket(reply)

    async def connect_guest(self, port: int) -> socket.socket:
        """See `kata_hypervisor.host.Host.connect_guest`."""
        try:
            return _socket(await self._request(connections.connect_guest, port=port))
        except RequestFailedError as error:
            raise _os_error(error) from None

    async def connect_events(self) -> socket.socket:
        """Open a connection to containerd's event socket. Raises OSError."""
        try:
            return _socket(await self._request(connections.connect_events))
        except RequestFailedError as error:
            raise _os_error(error) from None


def _only(reply: Reply) -> int:
    (descriptor,) = reply.descriptors
    return descriptor


def _socket(reply: Reply) -> socket.socket:
    sock = socket.socket(fileno=_only(reply))
    sock.setblocking(False)  # it is; Python's own flag says so from here on
    return sock


def _threads(reply: Reply) -> list[ThreadConfinement]:
    return [ThreadConfinement(*thread) for thread in reply.result["threads"]]


def _os_error(error: RequestFailedError) -> OSError:
    """The same as an OSError of its kind: ESRCH makes it a ProcessLookupError."""
    return OSError(error.errno, str(error))
