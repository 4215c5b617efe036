"""The shim itself: forked by launcher or zygote, it forks the broker and serves containerd until Shutdown.

The order matters where the launcher forked it: the broker is forked while this process is still small, and
the heavy imports happen while containerd connects (the listener's backlog holds its connection).
"""

from __future__ import annotations

import os

from kata_runtime.shim.setup import Setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def run(setup: Setup) -> None:
    """Serve, and end the process; never returns."""
    status = 1
    try:
        _detach(setup)
        from kata_runtime import syscalls
        from kata_runtime.broker.process import fork_broker

        broker_socket, broker_pid = fork_broker(setup.identity, setup.bundle, events=setup.ttrpc_address)
        syscalls.gain_nothing()  # before there is a second thread, which could not be changed later
        _serve(setup, broker_socket, broker_pid)
        status = 0
    except BaseException:  # noqa: BLE001 - containerd's log gets the traceback, and the process ends
        import traceback

        _report_fatal(setup, traceback.format_exc())
    os._exit(status)


def _detach(setup: Setup) -> None:
    """Leave containerd's session and its pipes: it reads them to their end before it goes on."""
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("kata-shim")
    if setup.foreground:
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    # What containerd left open is none of ours.
    os.closerange(3, setup.listener_fd)
    os.closerange(setup.listener_fd + 1, 2**31 - 1)


def _report_fatal(setup: Setup, text: str) -> None:
    """Tell containerd's log why this shim could not go on."""
    try:
        fd = os.open(os.path.join(setup.bundle, "log"), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        fd = 2
    os.write(fd, f"kata-shim: fatal: {text}\n".encode())


def _serve(setup: Setup, broker_socket: socket.socket, broker_pid: int) -> None:
    import gc
    import logging

    # Nothing of what the imports make is garbage.
    gc.disable()
    import anyio

    from kata_runtime.shim import log, server

    gc.enable()
    gc.freeze()
    log.set_up(setup.bundle, setup.identity.id, debug=setup.debug, foreground=setup.foreground)
    logging.getLogger(__name__).debug("the shim was %s", setup.origin)
    anyio.run(server.serve, setup, broker_socket, broker_pid)
