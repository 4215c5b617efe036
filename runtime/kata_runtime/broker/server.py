"""The broker's process: one request after the other, each checked, recorded, done and answered."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time

from kata_runtime import syscalls
from kata_runtime.broker import cgroups, messages, operations
from kata_runtime.broker.context import Context
from kata_runtime.broker.errors import BrokerError, RequestFailedError, RequestRefusedError, refusal
from kata_runtime.broker.event_loop import WRITABLE, EventLoop
from kata_runtime.broker.sandbox_directory import SandboxDirectory
from kata_runtime.broker.send_queue import MAX_QUEUED, SendQueue
from kata_runtime.confinement import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.messages import Message
    from kata_runtime.broker.operations.declaration import Reply
    from kata_runtime.identity import SandboxIdentity

LOOK = 10.0
"""Seconds between two looks at whether the sandbox's bundle exists: nothing waits for it."""

FAREWELL = 2.0
"""Seconds that the shim may take to read the last messages, among them the reply to `close`."""


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
    directory: SandboxDirectory | None = None
    try:
        loop = EventLoop()
        queue = SendQueue(channel, loop)
        host = reading.read_place(os.getpid())
        directory = SandboxDirectory(identity, bundle, shim, namespace=namespace)
        context = Context(identity, directory, bundle, events, loop, queue, host)
    except (OSError, BrokerError, MemoryError) as error:
        failed = f"the broker of sandbox {identity.id} cannot start: {error or os.strerror(errno.ENOMEM)}"
        messages.send(channel, messages.encode({"failed": failed}))
        if directory is not None:
            directory.roll_back({os.getpid(), shim}, [])
        return 1
    try:
        Server(channel, loop, queue, context).serve()
    except Exception as error:
        if sentence := refusal(error):
            context.supervisor.end_pod(sentence)
            return 1
        failed = f"the broker of sandbox {identity.id} has a fault: {error!r}"
        queue.put(messages.encode({"failed": failed[:4000]}))
        raise
    finally:
        # Also after a fault of our own: the pod is not left behind for a mistake in here.
        left = context.finish()
        queue.drain(FAREWELL)
        context.outlive_shim()
    return 1 if left else 0


class Server:
    """Serves one shim, over one channel."""

    def __init__(self, channel: socket.socket, loop: EventLoop, queue: SendQueue, context: Context) -> None:
        self._channel = channel
        self._loop = loop
        self._queue = queue
        self._context = context
        self._shim_exited = False
        self._next_look = time.monotonic() + LOOK

    def serve(self) -> None:
        """Answer requests and report exited children until the shim closes the broker, or is gone."""
        context = self._context
        self._reap_on_sigchld()
        self._watch_shim()
        self._loop.add(self._channel.fileno(), self._on_channel)
        try:
            while not context.closing and not self._shim_exited:
                self._loop.run_once(self._idle())
                context.supervisor.enforce_deadline()
                context.log_relay.resume()
                self._look_at_bundle()
                if self._queue.overflowed:
                    context.supervisor.end_pod(
                        f"the shim (process {context.shim}) left its broker's messages unread until "
                        f"{MAX_QUEUED} were waiting; a shim does so only when it is taken over or stopped, "
                        "so the pod was ended"
                    )
                    return
        except (messages.EndOfStream, messages.MessageError, ConnectionError):
            # The shim is gone, or sends what no shim of ours would: the sandbox ends either way.
            return

    def _idle(self) -> int:
        """Milliseconds until something is to be done that nothing wakes us for."""
        look = max(0, round((self._next_look - time.monotonic()) * 1e3))
        due = (self._context.supervisor.remaining(), self._context.log_relay.remaining())
        return min([look, *(one for one in due if one is not None)])

    def _look_at_bundle(self) -> None:
        """Tell the shim that its bundle is gone, again and again: it knows whether it has a container."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK
        if not self._context.directory.scope.bundle_exists:
            self._queue.put(messages.encode({"bundle": "gone"}))

    def _reap_on_sigchld(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.siginterrupt(signal.SIGCHLD, False)  # or a child's end fails whatever call is being made
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

        def reap(_: int) -> None:
            os.read(wake_read, 512)
            self._context.children.reap()

        self._loop.add(wake_read, reap)

    def _watch_shim(self) -> None:
        """End with the shim's process: an owned one may have sent its end of the channel to its VMM."""
        try:
            process = os.pidfd_open(self._context.shim)
        except ProcessLookupError:
            self._shim_exited = True
            return

        def exited(_: int) -> None:
            self._loop.remove(process)
            self._shim_exited = True

        self._loop.add(process, exited)

    def _on_channel(self, events: int) -> None:
        if events & WRITABLE:
            self._queue.on_writable()
        if events & ~WRITABLE:
            self._answer()

    def _answer(self) -> None:
        try:
            message, descriptors = messages.receive(self._channel)
        except BlockingIOError:
            return
        except messages.DescriptorsLostError as error:
            self._queue.put(messages.encode({"id": error.message.get("id"), "error": _describe(error)}))
            return
        reply: Reply | None = None
        try:
            reply = self._perform(message, descriptors)
            packet = messages.encode({"id": message.get("id"), "result": reply.result})
        except (BrokerError, OSError, cgroups.CgroupError, messages.MessageError, MemoryError) as error:
            self._context.report_refusal(message.get("op"), error)
            packet = messages.encode({"id": message.get("id"), "error": _describe(error)})
            if sentence := refusal(error):
                self._context.supervisor.let_end(sentence)
        finally:
            messages.close_all(descriptors)
        self._queue.put(packet, reply.descriptors if reply is not None else ())

    def _perform(self, message: Message, descriptors: list[int]) -> Reply:
        operation, arguments = operations.parse(message, len(descriptors))
        operation.check_phase(self._context.authorization.phase)
        return operation.perform(self._context, arguments, descriptors)


def _describe(error: Exception) -> Message:
    if isinstance(error, MemoryError):
        return {"kind": "failed", "message": os.strerror(errno.ENOMEM), "errno": errno.ENOMEM}
    if isinstance(error, messages.DescriptorsLostError):
        return {"kind": "failed", "message": str(error), "errno": error.errno}
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
