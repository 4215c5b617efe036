"""The shim's side of the broker: its vocabulary as coroutines, its children as objects.

Each call is shielded from cancellation: it takes milliseconds, and either happened or did not. A caller that
is cancelled learns so at its next checkpoint, with the child or the descriptor in its hands.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from kata_hypervisor.errors import HostUnfitError, LaunchError, NotSupportedError, SealError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.confinement import ThreadConfinement
from kata_runtime.broker import images, messages
from kata_runtime.broker.child import BrokerChild
from kata_runtime.broker.errors import BrokerError, BrokerLostError, RequestFailedError, RequestRefusedError
from kata_runtime.identity import MAX_SPEC

if TYPE_CHECKING:
    from kata_runtime.broker.messages import Message

Mount = tuple[str, str, Sequence[str]]
"""A mount as containerd gives it: type, source, options."""


class _Pending:
    """A request without its reply."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.message: Message = {}
        self.fds: list[int] = []


class Broker:
    """The broker of a sandbox; a `kata_hypervisor.host.Host`. Made within a running event loop.

    Every method raises BrokerLostError when the broker has ended, RequestRefusedError when the arguments are
    outside of its vocabulary or of the sandbox, and RequestFailedError when the host could not do what was
    asked.

    lost: set when the broker has ended without having been closed; `reason` then says what is known. Its
    children have been killed by the kernel, and are reported so.
    violated: set when our own filter refused a call; `violation` is the broker's sentence about it, and the
    broker will end this process.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self.lost = anyio.Event()
        self.reason = f"the broker (process {pid}) has ended"
        self.violated = anyio.Event()
        self.violation = ""
        self._channel = channel
        self._channel.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel, self._receive)
        self._process = os.pidfd_open(pid)
        self._sending = anyio.Lock()
        self._next = 1
        self._pending: dict[int, _Pending] = {}
        self._children: dict[int, BrokerChild] = {}
        # Ends that were told before the task that started the child could run again.
        self._early: dict[int, ExitStatus] = {}
        # What the filters of children have refused, by process id.
        self.refused: dict[int, str] = {}
        self._open = True
        self._closing = False
        self._gone = anyio.Event()

    @property
    def fault(self) -> str:
        """Why the sandbox cannot go on, as the broker knows it; empty when it can."""
        return self.violation or (self.reason if self.lost.is_set() else "")

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
    ) -> Child:
        """Start a child; see `kata_hypervisor.host.Host.spawn`. Raises LaunchError."""
        numbers = sorted(fds)
        try:
            result, _ = await self._request(
                "spawn",
                [fds[number] for number in numbers],
                name=name,
                argv=list(argv),
                fds=numbers,
                environment=None if environment is None else dict(environment),
                gate=gate,
                filter=None if seccomp is None else seccomp.to_json(),
            )
        except RequestFailedError as error:
            raise LaunchError(str(error)) from None
        except BrokerError as error:
            raise LaunchError(f"cannot start {name}: {error}") from None
        return self._adopt(name, result["pid"])

    def _adopt(self, name: str, pid: int) -> Child:
        child = BrokerChild(name, pid, self.kill, self.refused)
        if (status := self._early.pop(child.pid, None)) is not None:
            child.end(status)
        elif self._open:
            self._children[child.pid] = child
        else:
            child.end(ExitStatus(signal=signal.SIGKILL))
        return child

    async def kill(self, child: Child, number: int = signal.SIGKILL) -> None:
        """Send a signal to a child; nothing when it has ended."""
        try:
            await self._request("kill", pid=child.pid, signal=int(number))
        except BrokerLostError:
            return  # the kernel has killed it

    async def confinement(self, child: Child) -> list[ThreadConfinement]:
        """The kernel's word about each thread of the child, main thread first.

        Raises:
            ProcessLookupError: the child has ended.
        """
        try:
            result, _ = await self._request("confinement", pid=child.pid)
        except RequestFailedError as error:
            raise OSError(error.errno, str(error)) from None  # ESRCH makes it a ProcessLookupError
        return [ThreadConfinement(*thread) for thread in result["threads"]]

    async def filters_effective(self, child: Child, tid: int, beyond: int = 0) -> bool:
        """See `kata_hypervisor.host.Host`. Raises ProcessLookupError, SealError."""
        try:
            result, _ = await self._request("filters_effective", pid=child.pid, tid=tid, beyond=beyond)
        except RequestFailedError as error:
            raise OSError(error.errno, str(error)) from None  # ESRCH makes it a ProcessLookupError
        if result["unknown"]:
            raise SealError(result["unknown"])
        return bool(result["bite"])

    async def announce_seal(self, *, mode: str, policy: str) -> None:
        """Tell that this process is about to be sealed: from here on only what fits a sealed sandbox is done.

        mode: "enforce" or "log". policy: its name, for sentences. `supervise` must follow within seconds, or
        the broker kills this process.
        """
        await self._request("announce_seal", mode=mode, policy=policy)

    async def supervise(self, listener: int) -> list[ThreadConfinement]:
        """Hand over the listener of our own filter; returns the kernel's word about each thread of ours."""
        result, _ = await self._request("supervise", [listener])
        return [ThreadConfinement(*thread) for thread in result["threads"]]

    async def discard(self, path: Path) -> None:
        """See `kata_hypervisor.host.Host.discard`."""
        try:
            await self._request("discard", path=str(path))
        except BrokerLostError:
            return  # it goes with the sandbox's directory

    async def register_guest(self, address: int | str) -> None:
        """See `kata_hypervisor.host.Host.register_guest`."""
        await self._request("register_guest", address=address)

    async def connect_guest(self, port: int) -> socket.socket:
        """See `kata_hypervisor.host.Host.connect_guest`."""
        return await self._connect("connect_guest", port=port)

    async def connect_events(self) -> socket.socket:
        """Open a connection to containerd's event socket. Raises OSError."""
        return await self._connect("connect_events")

    async def _connect(self, op: str, **arguments: int) -> socket.socket:
        try:
            _, (fd,) = await self._request(op, (), **arguments)
        except RequestFailedError as error:
            raise OSError(error.errno, str(error)) from None
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)  # it is; Python's own flag says so from here on
        return sock

    async def make_image(self, root: str) -> tuple[Child, int]:
        """Let a program make an image of what is mounted at `root`, below the shared directory.

        Returns the program, and what it writes as a descriptor that does not block, the caller's to close;
        see `kata_runtime.broker.rootfs_image`.
        """
        result, (fd,) = await self._request("make_image", root=root)
        return self._adopt(images.ROLE, result["pid"]), fd

    async def open_disk(self, path: Path, *, write: bool) -> tuple[int, int]:
        """See `kata_hypervisor.host.Host`; there are images of root file systems, and nothing else."""
        if write or path.parent != Path(images.CACHE) or path.suffix != images.SUFFIX:
            raise NotSupportedError(f"cannot plug {path}: only an image of a root file system, read-only")
        try:
            result, (fd,) = await self._request("open_image", name=path.stem)
        except BrokerError as error:
            raise LaunchError(str(error)) from None
        return fd, result["size"]

    async def make_jail(self, root: Path, files: Mapping[str, Path]) -> None:
        """Make a root directory for a child; see `kata_hypervisor.host.Host`. Once for each sandbox."""
        try:
            await self._request(
                "make_jail", root=str(root), files={name: str(path) for name, path in files.items()}
            )
        except RequestFailedError as error:
            raise HostUnfitError(str(error)) from None

    async def oom_kills(self) -> int:
        """How many processes of the sandbox's cgroup the kernel has killed for want of memory."""
        result, _ = await self._request("oom_kills")
        return int(result["count"])

    # -- the sandbox ---------------------------------------------------------------------------------------

    async def prepare(self, cgroup: str | None) -> str:
        """Make the sandbox's cgroup and move shim and broker into it; once, before any child is started.

        cgroup: the specification's linux.cgroupsPath. Returns the cgroup's path within each hierarchy.
        """
        result, _ = await self._request("prepare", cgroup=cgroup)
        return str(result["path"])

    async def read_spec(self, bundle: str) -> bytes:
        """A container's config.json, up to MAX_SPEC + 1 bytes; what it names may then be shared."""
        _, (fd,) = await self._request("open_spec", bundle=bundle)
        raw = b""
        try:
            while len(raw) <= MAX_SPEC and (chunk := os.read(fd, MAX_SPEC + 1 - len(raw))):
                raw += chunk
        finally:
            os.close(fd)
        return raw

    async def make_directory(self, path: str) -> None:
        """Make a directory below the shared directory, with its parents; one that exists is left as it is."""
        await self._request("make_directory", path=path)

    async def mount(self, target: str, mounts: Sequence[Mount]) -> None:
        """Mount several, the later on top, on a directory that is made if missing; all or nothing."""
        wanted = [[kind, source, list(options)] for kind, source, options in mounts]
        await self._request("mount", target=target, mounts=wanted)

    async def bind(self, source: str, target: str, *, readonly: bool, recursive: bool = True) -> None:
        """Share a file or directory of the host; the target is made to match it.

        readonly holds for the mounts below the source too. What is mounted below it on the host later is not
        shared.
        """
        await self._request("bind", source=source, target=target, readonly=readonly, recursive=recursive)

    async def unmount(self, target: str) -> None:
        """Undo `mount` or `bind`, all that is stacked there; what is in use is detached. The target stays."""
        await self._request("unmount", target=target)

    async def remove(self, path: str) -> None:
        """Remove an empty directory, or a file, that was made by `make_directory`, `mount` or `bind`."""
        await self._request("remove", path=path)

    # -- standard streams ----------------------------------------------------------------------------------

    async def open_fifo(self, path: str, mode: str) -> int:
        """Open a FIFO without blocking; the descriptor is the caller's. mode: "r", "w" or "rw".

        With "w", RequestFailedError with ENXIO says that nobody reads it.
        """
        _, fds = await self._request("open_fifo", path=path, mode=mode)
        return fds[0]

    async def open_log(self, path: str) -> int:
        """Open a regular file to append to, made where it is missing; the descriptor is the caller's."""
        _, fds = await self._request("open_log", path=path)
        return fds[0]

    async def open_in_image(self, root: str, name: str, *, write: bool) -> int:
        """Open a regular file or block device in what was mounted at `root`; the descriptor is the caller's.

        name: a path in there, which leaves it neither by a link nor by "..".
        """
        _, fds = await self._request("open_in_image", root=root, name=name, write=write)
        return fds[0]

    # -- the end -------------------------------------------------------------------------------------------

    async def close(self) -> list[str]:
        """Undo everything and end the broker; returns once it has ended. Idempotent.

        Returns one line for each thing that could not be undone: `shim delete` will try these again. When the
        broker was lost before, nothing is undone here: that is for `janitor.clean_up`.
        """
        left: list[str] = []
        if self._open and not self._closing:
            self._closing = True
            try:
                result, _ = await self._request("close")
                left = result["left"]
            except BrokerLostError:
                left = [self.reason]
        with anyio.CancelScope(shield=True):
            await self._gone.wait()
        return left

    # -- the channel ---------------------------------------------------------------------------------------

    async def _request(
        self, op: str, descriptors: Sequence[int] = (), **arguments: object
    ) -> tuple[dict[str, Any], list[int]]:
        number, pending = self._next, _Pending()
        self._next += 1
        try:
            packet = messages.encode({"id": number, "op": op, **arguments})
        except messages.MessageError as error:
            raise RequestRefusedError(f"{op}: {error}") from None
        with anyio.CancelScope(shield=True):
            self._pending[number] = pending
            try:
                await self._send(packet, descriptors)
                await pending.answered.wait()
            finally:
                self._pending.pop(number, None)
        reply = pending.message
        if "result" in reply:
            return reply["result"], pending.fds
        if "error" not in reply:
            raise BrokerLostError(self.reason)
        if reply["error"]["kind"] == "refused":
            raise RequestRefusedError(reply["error"]["message"])
        raise RequestFailedError(reply["error"]["message"], reply["error"]["errno"])

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        async with self._sending:
            while self._open:
                try:
                    messages.send(self._channel, packet, fds)
                except BlockingIOError:
                    await anyio.wait_writable(self._channel)
                except ConnectionError:
                    self._receive()  # its last words say why, and then comes the end
                else:
                    return
        raise BrokerLostError(self.reason)

    def _receive(self) -> None:
        """Take every message that is there. Called by the event loop."""
        try:
            while True:
                message, fds = messages.receive(self._channel)
                self._take(message, fds)
        except BlockingIOError:
            return
        except messages.EndOfStream:
            self._lose()
        except messages.MessageError as error:
            self.reason = f"the broker (process {self.pid}) was cut off: {error}"
            self._lose()

    def _take(self, message: Message, fds: list[int]) -> None:
        if "id" in message:
            pending = self._pending[message["id"]]
            pending.message, pending.fds = message, fds
            pending.answered.set()
        elif "exited" in message:
            pid, status = message["exited"], ExitStatus(message.get("code"), message.get("signal"))
            if (child := self._children.pop(pid, None)) is not None:
                child.end(status)
            else:
                self._early[pid] = status
        elif "refused" in message:
            self.refused[message["refused"]] = message["sentence"]
        elif "violation" in message:
            self.violation = message["violation"]
            self.violated.set()
        else:
            self.reason = message["failed"]

    def _lose(self) -> None:
        """The channel has ended: so have all children, by the kernel's hand if by no other."""
        self._open = False
        self._loop.remove_reader(self._channel)
        self._channel.close()
        if not self._closing:
            self.lost.set()
        for child in self._children.values():
            child.end(ExitStatus(signal=signal.SIGKILL))
        self._children.clear()
        for pending in self._pending.values():
            pending.answered.set()
        self._loop.add_reader(self._process, self._reap)

    def _reap(self) -> None:
        # Not waited for: the shim ignores SIGCHLD, so the kernel does it (sigaction(2), SA_NOCLDWAIT).
        self._loop.remove_reader(self._process)
        os.close(self._process)
        self._gone.set()
