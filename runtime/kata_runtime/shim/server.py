"""One sandbox's services put together, and their end in the right order."""

from __future__ import annotations

import logging
import signal
import socket
from typing import TYPE_CHECKING

import anyio

from kata_agent.ttrpc.server import Server
from kata_hypervisor.concurrency import finish, race
from kata_runtime.broker.client import Broker
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.tasks import Tasks
from kata_runtime.shim.codes import to_rpc_error
from kata_runtime.shim.debug_service import DebugService
from kata_runtime.shim.events import EventPublisher
from kata_runtime.shim.log_service import LogService
from kata_runtime.shim.network_service import NetworkService
from kata_runtime.shim.sandbox_service import SandboxService
from kata_runtime.shim.task_service import TaskService

if TYPE_CHECKING:
    from kata_runtime.shim.setup import Setup

_log = logging.getLogger(__name__)

FLUSH_BUDGET = 1.0
"""Seconds for which a client gets that reads none of the answers which it waits for."""

LINGER = 15.0
"""Seconds after which a shim whose pod is over looks whether it has a container still; it ends at the second
look without one."""


async def serve(setup: Setup, broker_socket: socket.socket, broker_pid: int) -> None:
    """Serve containerd until Shutdown."""
    # systemd stops a scope with SIGTERM: the pod's end is containerd's to decide.
    # Our one child, the broker, is not waited for: the kernel takes it away.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        broker = Broker(broker_socket, broker_pid)
        connect = broker.connect_events if setup.ttrpc_address else None
        publisher = EventPublisher(connect, setup.identity.namespace)
        tasks.start_soon(publisher.run)

        sandbox = Sandbox(
            setup.identity,
            broker,
            tasks,
            on_end=lambda reason: manager.end_all(reason),
            on_oom=lambda container_id: manager.oom(container_id),
        )
        manager = Tasks(sandbox, broker, tasks, publisher.publish)

        async def undo_everything() -> None:
            """Before the answer to Shutdown: containerd runs `shim delete` right after it."""
            await sandbox.stop("the shim was shut down")
            # What a lost broker has left is for `shim delete`, which containerd runs next: we are sealed.
            for line in await broker.close():
                _log.error("left behind: %s", line)
            done.set()

        async def shut_down() -> None:
            try:
                await publisher.flush()  # as long as who asks for the end waits for it
            finally:
                await finish(undo_everything())

        sandboxes = SandboxService(sandbox, manager, broker, shut_down, setup.config_path)
        service = TaskService(manager, sandbox, shut_down, setup.config_path)
        handlers = {**service.handlers(), **sandboxes.handlers(), **NetworkService(sandbox).handlers()}
        handlers |= {**DebugService(sandbox).handlers(), **LogService().handlers()}
        server = Server(handlers, on_error=to_rpc_error)
        listener = socket.socket(fileno=setup.listener_fd)
        listener.setblocking(False)
        tasks.start_soon(server.serve, listener)

        async def watch_broker() -> None:
            await race(broker.lost.wait, broker.violated.wait)
            await sandbox.fail(broker.fault)

        async def watch_bundle() -> None:
            await race(
                lambda: _until_forgotten(broker, manager), lambda: _until_over(sandbox, manager, sandboxes)
            )
            await shut_down()

        tasks.start_soon(watch_broker)
        tasks.start_soon(watch_bundle)
        await done.wait()
        with anyio.move_on_after(FLUSH_BUDGET):  # for a client that reads no answers
            await server.answered()
        tasks.cancel_scope.cancel()


async def _until_over(sandbox: Sandbox, manager: Tasks, sandboxes: SandboxService) -> None:
    """Return when the pod is over, and who deleted its last container does not ask for the shim's end.

    A containerd that is killed between the two has a task then that its shim does not know, and neither
    deletes it nor ends the shim. When the shim ends, it clears up.
    """
    await sandbox.wait_ended()
    was_empty = False
    while not (was_empty and manager.empty and not sandboxes.created):
        was_empty = manager.empty
        await anyio.sleep(LINGER)


async def _until_forgotten(broker: Broker, manager: Tasks) -> None:
    """Return when nobody can ask for an end: containerd finds a shim by its bundle, also to delete it."""
    await broker.bundle_gone()
    while not manager.empty:
        await broker.bundle_gone()
