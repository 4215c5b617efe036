"""Forking the broker, the first thing that a shim does: nothing heavy is loaded yet, and no thread runs."""

from __future__ import annotations

import errno
import os
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.identity import SandboxIdentity

_CHANNEL = 3
# containerd's service may run in the same systemd scope: its stop is not a pod's. The broker exits with its
# shim.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


def fork_broker(
    identity: SandboxIdentity, bundle: str, *, events: str = "", namespace: bool = True
) -> tuple[socket.socket, int]:
    """Fork the broker of a sandbox; return the socket to it and its pid, for `client.Broker`.

    It prepares itself while the caller goes on; should that fail, the first request says why.

    bundle: absolute path of the sandbox's bundle. events: path of containerd's ttrpc socket, empty for none.
    namespace: whether it gets a mount namespace of its own, which takes CAP_SYS_ADMIN; without one nothing
    can be mounted.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shim = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    status = 1
    try:
        channel = _detach(theirs)
        try:
            import gc

            gc.disable()  # nothing of what the imports make is garbage
            from kata_runtime.broker import server

            gc.enable()
            gc.freeze()  # a child that looked for garbage would copy all that it has of the broker
        except (OSError, MemoryError) as error:
            # What writes messages may be what cannot be loaded.
            why = os.strerror(getattr(error, "errno", None) or errno.ENOMEM)
            channel.send(f'{{"failed": "the broker cannot be loaded: {why}"}}'.encode())
            raise

        status = server.run(channel, identity, bundle, events, shim, namespace=namespace)
    finally:
        os._exit(status)


def _detach(theirs: socket.socket) -> socket.socket:
    """Leave the shim's session, signals and descriptors behind; all that remains is the channel."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    kept = os.dup(theirs.detach())
    while kept <= _CHANNEL:
        kept = os.dup(kept)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(kept, _CHANNEL, inheritable=False)
    os.closerange(_CHANNEL + 1, 2**31 - 1)
    return socket.socket(fileno=_CHANNEL)
