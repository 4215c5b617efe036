"""The broker's side: one request after the other, each checked, recorded, done and answered."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time

from kata_hypervisor.seccomp import confinement
from kata_runtime import syscalls
from kata_runtime.broker import (
    cgroups,
    cleanup,
    images,
    messages,
    processes,
    request_schema,
    rollback,
    spawn,
    streams,
)
from kata_runtime.broker.authorization import Authorization
from kata_runtime.broker.child_filter import ChildFilterSupervisor
from kata_runtime.broker.connections import Connections
from kata_runtime.broker.errors import BrokerError, RequestFailedError, RequestRefusedError
from kata_runtime.broker.files import Files
from kata_runtime.broker.log_sink import LogSink, take_fatal_message
from kata_runtime.broker.rollback import RollbackJournal
from kata_runtime.broker.sandbox_directory import SandboxDirectory
from kata_runtime.broker.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.messages import Message
    from kata_runtime.identity import SandboxIdentity

    Reply = tuple[dict[str, Any], list[int]]

_PAUSE = 0.001


def run(
    channel: socket.socket,
    identity: SandboxIdentity,
    bundle: str,
    events: str,
    shim: int,
    *,
    namespace: bool,
) -> int:
    """Be the broker until the shim closes it or is gone; returns the process's exit status."""
    syscalls.set_name("kata-broker")
    syscalls.become_subreaper()
    try:
        workspace = SandboxDirectory(identity, bundle, shim, namespace=namespace)
    except (OSError, BrokerError) as error:
        messages.send(
            channel, messages.encode({"failed": f"the broker of sandbox {identity.id} cannot begin: {error}"})
        )
        return 1
    server = Server(channel, identity, workspace, bundle, events)
    try:
        server.serve()
    except Exception as error:
        messages.send(
            channel,
            messages.encode({"failed": f"the broker of sandbox {identity.id} has a fault: {error!r}"[:4000]}),
        )
        raise
    finally:
        # Also after a fault of our own: the pod is not left behind for a mistake in here.
        left = server.finish()
    return 1 if left else 0


class Server:
    """The state of one broker: its channel, its children by pid, its undo stack, its watch over the shim."""

    def __init__(
        self,
        channel: socket.socket,
        identity: SandboxIdentity,
        workspace: SandboxDirectory,
        bundle: str,
        events: str,
    ) -> None:
        self._channel = channel
        self._connections = Connections(events)
        self._bundle = bundle
        self._authorization = Authorization(bundle, identity.id)
        self._supervisor: Supervisor | None = None
        self._waiter = select.poll()
        self._identity = identity
        self._workspace = workspace
        self._log: RollbackJournal = workspace.log
        self._files = Files(workspace, self._authorization)
        # pid: number of its undo entry; listener: a child's pid, and the watch over it
        self._children: dict[int, int] = {}
        self._watches: dict[int, tuple[int, ChildFilterSupervisor]] = {}
        self._cgroup: cgroups.Cgroup | None = None
        self._serving = True
        self._left: list[str] | None = None

    # -- the loop ------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer requests and tell of ended children until the shim closes the broker, or is gone."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._waiter.register(wake_read, select.POLLIN)
        self._waiter.register(self._channel, select.POLLIN)
        try:
            while self._serving:
                for fd, event in self._waiter.poll(
                    self._supervisor.remaining() if self._supervisor else None
                ):
                    if fd == wake_read:
                        os.read(wake_read, 512)
                        self._reap()
                    elif fd == self._channel.fileno():
                        self._answer()
                    elif fd in self._watches:
                        self._judge_child(fd, over=not event & select.POLLIN)
                    else:
                        self._judge()
                if self._supervisor is not None:
                    self._supervisor.execute()
        except (messages.EndOfStream, messages.MessageError, ConnectionError):
            # The shim is gone, or it speaks what no shim of ours would: the sandbox ends either way.
            return

    def _answer(self) -> None:
        message, fds = messages.receive(self._channel)
        answer: list[int] = []
        try:
            result, answer = self._perform(message, fds)
            packet = messages.encode({"id": message.get("id"), "result": result})
        except (BrokerError, OSError, cgroups.CgroupError, messages.MessageError) as error:
            packet = messages.encode({"id": message.get("id"), "error": _describe(error)})
        finally:
            messages.close_all(fds)
        try:
            messages.send(self._channel, packet, answer)
        finally:
            messages.close_all(answer)

    def _perform(self, message: Message, fds: list[int]) -> Reply:
        op, arguments = request_schema.check(message, len(fds))
        self._authorization.check_operation(op)
        if op == "spawn":
            arguments["fds"] = dict(zip(arguments["fds"], fds, strict=True))
        elif op == "supervise":
            arguments["listener"] = fds[0]
        reply: Reply = getattr(self, f"_do_{op}")(**arguments)
        return reply

    def _reap(self) -> None:
        """Collect every child that has ended, adopted ones too, and tell of those that were spawned."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (number := self._children.pop(pid, None)) is not None:
                if self._left is None:  # else the stack is undone, and gone
                    self._log.drop(number)
                code = os.waitstatus_to_exitcode(status)
                how = {"code": code} if code >= 0 else {"signal": -code}
                try:
                    messages.send(self._channel, messages.encode({"exited": pid, **how}))
                except ConnectionError:
                    continue  # the shim is gone, which the loop learns from the channel

    # -- the end -------------------------------------------------------------------------------------------

    def finish(self) -> list[str]:
        """Undo everything, once; returns a line for each thing that is left."""
        if self._left is None:
            self._end_descendants()
            shim = self._log.header["shim"]
            alive = not self._serving and processes.is_alive(*shim)
            self._left = self._workspace.undo(spared={os.getpid(), shim[0]} if alive else {os.getpid()})
            # A shim that closes its broker serves nobody any more either.
            cleanup.unlink(self._identity.socket)
        return self._left

    def _end_descendants(self) -> None:
        """Kill every child until there is none: what they leave behind becomes our child in turn."""
        deadline = time.monotonic() + processes.GRACE
        while (pids := processes.children()) and time.monotonic() < deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)  # a zombie takes it too, and no pid is free until we reap it
            time.sleep(_PAUSE)
            self._reap()

    def _do_close(self) -> Reply:
        self._serving = False
        left = self.finish()
        self._reap()
        take_fatal_message(self._bundle)  # the shim has told it
        return {"left": left[:20]}, []

    # -- processes -----------------------------------------------------------------------------------------

    def _do_prepare(self, cgroup: str | None) -> Reply:
        if self._cgroup is not None:
            raise RequestRefusedError("prepare: the sandbox has its cgroup already")
        group = cgroups.Cgroup(cgroups.cgroup_path(cgroup, self._identity.key), cgroups.hierarchies())
        sandboxes = os.path.dirname(self._identity.directory)
        group.create(
            lambda kind, path, origin: self._push(kind, path=path, origin=origin),
            lambda path: rollback.is_recorded(sandboxes, "rmgroup", path),
        )
        group.join(os.getpid())  # children are born into it
        group.join(self._log.header["shim"][0])
        self._cgroup = group
        return {"path": group.path}, []

    def _push(self, undo: str, **fields: object) -> None:
        self._log.push(undo, **fields)

    def _do_spawn(
        self,
        name: str,
        argv: list[str],
        fds: dict[int, int],
        environment: dict[str, str] | None,
        gate: int | None,
        filter: dict[str, Any] | None,  # noqa: A002 - the vocabulary's word
    ) -> Reply:
        if gate is not None and gate not in fds:
            raise RequestRefusedError(f"spawn: descriptor {gate} cannot be a gate, it does not come along")
        number = 0

        def record(pid: int, start: int) -> None:
            nonlocal number
            number = self._log.push("process", pid=pid, start=start, name=name)

        watch = ChildFilterSupervisor(name, filter) if filter is not None else None
        try:
            pid = spawn.spawn(name, argv, fds, environment, record, gate=gate, watch=watch)
        except BaseException:
            self._log.drop(number)
            raise
        self._children[pid] = number
        if watch is not None:
            self._watches[watch.listener] = pid, watch
            self._waiter.register(watch.listener, select.POLLIN)
        return {"pid": pid}, []

    def _judge_child(self, listener: int, *, over: bool) -> None:
        """A child asks for what its filter does not simply let through, or is not there any more."""
        pid, watch = self._watches[listener]
        if over:
            self._waiter.unregister(listener)
            del self._watches[listener]
            watch.close()
        elif (sentence := watch.answer()) is not None and pid in self._children:
            os.kill(pid, signal.SIGKILL)
            LogSink(self._bundle, self._identity.id).write("error", sentence)
            messages.send(self._channel, messages.encode({"refused": pid, "sentence": sentence}))

    def _do_kill(self, pid: int, signal: int) -> Reply:
        # Not reaped, so the pid is still this child's; one that was reaped has ended, which is what was
        # wanted.
        if pid in self._children:
            os.kill(pid, signal)
        return {}, []

    def _do_confinement(self, pid: int) -> Reply:
        if pid not in self._children and pid != self._log.header["shim"][0]:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
        return {"threads": _threads(pid)}, []

    def _do_filters_effective(self, pid: int, tid: int, beyond: int) -> Reply:
        if pid not in self._children or not os.path.exists(f"/proc/{pid}/task/{tid}"):
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended, or has no thread {tid}")
        from kata_hypervisor.errors import SealError
        from kata_hypervisor.seccomp import effectiveness

        try:
            return {"bite": effectiveness.are_effective(tid, beyond), "unknown": ""}, []
        except SealError as error:
            return {"bite": False, "unknown": str(error)[:1000]}, []

    def _do_announce_seal(self, mode: str, policy: str) -> Reply:
        self._authorization.seal()
        self._supervisor = Supervisor(
            self._log.header["shim"][0],
            policy,
            enforce=mode == "enforce",
            log_sink=LogSink(self._bundle, self._identity.id),
            directory=self._workspace.directory,
        )
        return {}, []

    def _do_supervise(self, listener: int) -> Reply:
        """Take the shim's filter under watch, and tell what the kernel says of the shim's threads."""
        if self._supervisor is None or self._supervisor.listener >= 0:
            raise RequestRefusedError("supervise: no seal was announced, or it is supervised already")
        self._supervisor.watch(os.dup(listener))
        self._waiter.register(self._supervisor.listener, select.POLLIN)
        return {"threads": _threads(self._log.header["shim"][0])}, []

    def _judge(self) -> None:
        """A call of the shim was refused by its filter, or nobody is under the filter any more."""
        assert self._supervisor is not None
        sentence = self._supervisor.answer()
        if sentence is not None:
            messages.send(self._channel, messages.encode({"violation": sentence}))

    def _do_oom_kills(self) -> Reply:
        return {"count": self._cgroup.oom_kills() if self._cgroup else 0}, []

    # -- files ---------------------------------------------------------------------------------------------

    def _do_make_directory(self, path: str) -> Reply:
        self._files.make_directory(path)
        return {}, []

    def _do_mount(self, target: str, mounts: list[list[Any]]) -> Reply:
        self._files.mount(target, mounts)
        return {}, []

    def _do_bind(self, source: str, target: str, readonly: bool, recursive: bool) -> Reply:
        self._files.bind(source, target, readonly=readonly, recursive=recursive)
        return {}, []

    def _do_unmount(self, target: str) -> Reply:
        self._files.unmount(target)
        return {}, []

    def _do_remove(self, path: str) -> Reply:
        self._files.remove(path)
        return {}, []

    def _do_discard(self, path: str) -> Reply:
        self._workspace.discard(path)
        return {}, []

    def _do_make_jail(self, root: str, files: dict[str, str]) -> Reply:
        self._workspace.make_jail(root, files)
        return {}, []

    # -- what is opened for the shim -----------------------------------------------------------------------

    def _do_register_guest(self, address: int | str) -> Reply:
        self._connections.register_guest(address)
        return {}, []

    def _do_connect_guest(self, port: int) -> Reply:
        return {}, [self._connections.connect_guest(port)]

    def _do_connect_events(self) -> Reply:
        return {}, [self._connections.connect_events()]

    def _do_open_spec(self, bundle: str) -> Reply:
        return {}, [self._authorization.open_spec(bundle)]

    def _do_open_in_image(self, root: str, name: str, write: bool) -> Reply:
        with self._workspace.scope.reach(root) as place:
            mount = place.open()
        try:
            return {}, [streams.open_in_image(mount, name, write=write)]
        finally:
            os.close(mount)

    def _do_make_image(self, root: str) -> Reply:
        """Start the program that makes an image of a mounted root file system; its words come in a pipe."""
        self._files.cover(root)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(reader, False)
            result, _ = self._do_spawn(
                images.ROLE, images.command(root), {1: writer, 2: writer}, None, None, None
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return result, [reader]

    def _do_open_image(self, name: str) -> Reply:
        fd, size = images.open_image(name)
        return {"size": size}, [fd]

    def _do_open_fifo(self, path: str, mode: str) -> Reply:
        self._authorization.check_fifo(path)
        return {}, [streams.open_fifo(path, request_schema.FIFO_MODES[mode])]

    def _do_open_log(self, path: str) -> Reply:
        self._authorization.check_log(path)
        return {}, [streams.open_log(path)]


def _threads(pid: int) -> list[list[Any]]:
    """The kernel's word about each thread of a process, as the fields of a ThreadConfinement."""
    return [[t.tid, t.name, t.mode, t.filters, t.no_new_privs] for t in confinement.read_threads(pid)]


def _describe(error: Exception) -> Message:
    if isinstance(error, RequestRefusedError | cgroups.CgroupError | messages.MessageError):
        return {"kind": "refused", "message": str(error)[:4000], "errno": 0}
    if isinstance(error, RequestFailedError):
        return {"kind": "failed", "message": str(error)[:4000], "errno": error.errno}
    assert isinstance(error, OSError)
    where = f"{error.filename}: " if error.filename else ""
    return {
        "kind": "failed",
        "message": f"{where}{error.strerror or error}"[:4000],
        "errno": error.errno or 0,
    }
