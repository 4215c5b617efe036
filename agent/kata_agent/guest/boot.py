"""From the first instruction of PID 1 to the first connection, and back after each that is lost."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

from kata_agent import reserved_ports
from kata_agent.constants import AGENT_PORT, FORWARD_PORT, STREAM_PORT
from kata_agent.guest import VERSION, cgroup, forwarding, log, mounts, syscalls, system
from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.runtime import Crun
from kata_agent.guest.sandbox import BASE, Sandbox
from kata_agent.guest.service import AgentService
from kata_agent.guest.streams import Acceptor, StreamTable
from kata_agent.guest.wiring import PIPE_SIZE
from kata_agent.mux.guest import MuxGuest
from kata_agent.ttrpc.blocking import BlockingServer
from kata_agent.ttrpc.status import RpcError

PORT_NAME = "org.kata.agent.0"
SCRATCH = "/run/kata-agent"
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_RETRY_PAUSE = 0.1
_LOOK_PAUSE = 0.01
_MANY_LOOKS = 500  # after which the console tells what is waited for


class Options(NamedTuple):
    """What the kernel's command line asks of the agent.

    verbose: agent.log=debug or trace. pipe_size: agent.container_pipe_size, in bytes. reserved: whether the
    host calls from reserved ports of vsock, see `reserved_ports`.
    """

    verbose: bool = False
    pipe_size: int = PIPE_SIZE
    reserved: bool = False


def parse_options(command_line: str) -> Options:
    """Read the agent's options from the kernel's command line; those of other agents are ignored.

    Raises:
        InvalidRequestError: agent.container_pipe_size is not a number.
    """
    pairs = (word.partition("=") for word in command_line.split())
    values = {name: value for name, _, value in pairs}
    text = values.get("agent.container_pipe_size") or "0"
    if not text.isdecimal():
        raise InvalidRequestError(
            f"agent.container_pipe_size={text} on the kernel's command line is no number"
        )
    size = int(text)
    return Options(
        verbose=values.get("agent.log", "") in ("debug", "trace"),
        pipe_size=size if size > 0 else PIPE_SIZE,
        reserved=reserved_ports.PARAMETER in command_line.split(),
    )


def main() -> NoReturn:
    """Be the guest's init. A failure to get ready is one line on the console, and the end of the machine."""
    try:
        _run()
    except BaseException as error:  # noqa: BLE001 - of PID 1: the machine ends, whatever it was
        log.info(f"fatal: {_reason(error)}")
    os.sync()
    syscalls.reboot(syscalls.RB_POWER_OFF)
    raise SystemExit(1)


def _reason(error: BaseException) -> str:
    expected = isinstance(error, OSError | RpcError)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _run() -> NoReturn:
    os.umask(0o022)
    mounts.mount_missing()
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        options = parse_options(file.read())
    log.set_verbose(options.verbose)
    cgroup.prepare()
    system.promise_memory()
    bring_up_loopback()
    os.makedirs(SCRATCH, mode=0o700, exist_ok=True)
    os.makedirs(BASE, exist_ok=True)
    reaper = Reaper()
    reaper.start()
    sandbox = Sandbox(reaper, Crun(reaper, scratch=SCRATCH), StreamTable(), pipe_size=options.pipe_size)
    sandbox.oom.start()
    server = BlockingServer(AgentService(sandbox).handlers(), log=log.info)
    port = find_port()
    with open("/proc/uptime", encoding="ascii") as file:
        log.info(f"version {VERSION} ready on {port or 'vsock'} after {file.read().split()[0]} s")
    if port is None:
        serve_vsock(server, sandbox.streams, reserved=options.reserved)
    serve_serial(port, server, sandbox.streams)


def bring_up_loopback() -> None:
    """Switch the interface `lo` on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("h", request, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def find_port() -> str | None:
    """The device node of the agent's serial port, or None for vsock; whichever the machine turns out to have.

    The host tells a port's name in a message of its own, which may come after the agent. It is waited for
    until the host loses patience, which shows the console then.
    """
    for look in itertools.count():
        if (port := serial_port()) is not None or has_vsock():
            return port
        if look == _MANY_LOOKS:
            log.info(f"this machine has neither a serial port named {PORT_NAME} nor a vsock device so far")
        time.sleep(_LOOK_PAUSE)
    raise AssertionError


def has_vsock(sysfs: str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport") -> bool:
    """Whether there is a vsock device, and not only its driver."""
    return os.path.isdir(sysfs) and any(name.startswith("virtio") for name in os.listdir(sysfs))


def serial_port(sysfs: str = "/sys/class/virtio-ports") -> str | None:
    """The device node of the serial port that the host gave the agent; None if it gave none."""
    for name in os.listdir(sysfs) if os.path.isdir(sysfs) else ():
        with open(f"{sysfs}/{name}/name", encoding="utf-8", errors="replace") as file:
            if file.read().strip() == PORT_NAME:
                return f"/dev/{name}"
    return None


def serve_serial(port: str, server: BlockingServer, streams: StreamTable) -> NoReturn:
    """Serve what the host multiplexes over a serial port, again after each time it hung up."""
    while True:
        descriptor = os.open(port, os.O_RDWR | os.O_CLOEXEC)
        try:
            guest = MuxGuest(descriptor)
            forwarded = guest.listen(FORWARD_PORT)
            _start("forwarding", partial(forwarding.serve_forever, forwarded))
            start_serving(guest.listen(AGENT_PORT), guest.listen(STREAM_PORT), server, streams)
            guest.run()
            log.debug("the host closed the serial port")
        except (OSError, ValueError) as error:  # ValueError: the mux's protocol errors
            log.info(f"serial port lost: {error}")
            time.sleep(_RETRY_PAUSE)
        finally:
            os.close(descriptor)


def serve_vsock(server: BlockingServer, streams: StreamTable, *, reserved: bool) -> NoReturn:
    """Serve what the host connects to over vsock. reserved: see `Options`."""
    forwarded = VsockAcceptor(FORWARD_PORT, reserved=reserved)
    _start("forwarding", partial(forwarding.serve_forever, forwarded))
    stdio = VsockAcceptor(STREAM_PORT, reserved=reserved)
    # The last: whoever gets through to it finds all the rest.
    calls = VsockAcceptor(AGENT_PORT, reserved=reserved)
    _start("streams", lambda: streams.accept_forever(stdio))
    accept_calls(calls, server)


def start_serving(calls: Acceptor, stdio: Acceptor, server: BlockingServer, streams: StreamTable) -> None:
    """Take in connections of both kinds in threads, until their acceptors fail."""
    _start("streams", lambda: streams.accept_forever(stdio))
    _start("calls", lambda: accept_calls(calls, server))


def accept_calls(acceptor: Acceptor, server: BlockingServer) -> NoReturn:
    """Serve each connection in a thread of its own, until the acceptor fails."""
    while True:
        connection, number = acceptor.accept()
        threading.Thread(
            target=server.serve, args=(connection,), name=f"connection {number}", daemon=True
        ).start()


def _start(name: str, function: Callable[[], object]) -> None:
    def run() -> None:
        try:
            function()
        except OSError as error:
            log.debug(f"no more {name}: {error}")

    threading.Thread(target=run, name=name, daemon=True).start()


class VsockAcceptor:
    """Listens on a port of the kernel's vsock; the number of a stream is the host's port.

    Takes connections of the host only, where `reserved` says so of its root only; see `reserved_ports`.
    """

    def __init__(self, port: int, *, reserved: bool) -> None:
        self._reserved = reserved and reserved_ports.is_guarded(port)
        self._sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self._sock.bind((socket.VMADDR_CID_ANY, port))
        self._sock.listen(128)

    def accept(self) -> tuple[socket.socket, int]:
        """The next connection; waits a little where the guest is out of descriptors."""
        while True:
            try:
                connection, (context, port) = self._sock.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                log.info(f"accept a connection: {error}")
                time.sleep(_RETRY_PAUSE)
                continue
            if self._is_trusted(context, port):
                return connection, port
            connection.close()
            log.debug(f"refused a connection from port {port} of vsock {context}: it is not the host's root")

    def _is_trusted(self, context: int, port: int) -> bool:
        return context == socket.VMADDR_CID_HOST and (not self._reserved or reserved_ports.is_reserved(port))
