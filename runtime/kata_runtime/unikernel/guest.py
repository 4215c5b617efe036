"""A unikernel as a sandbox's guest: it has no agent, and this answers in its place.

What the runtime asks of an agent is asked here in the same words: what can be done with a unikernel is done
with its monitor, and everything else is answered Unimplemented, with a sentence.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.message import Message

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.contract import BlockFile, UnikernelSpec, UnikernelVmm, VmExit
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.bundle import annotations_of
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.unikernel.description import FILE, MAX_FILE, PREFIX, Unikernel, from_annotations, from_file

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.process import Container
    from kata_runtime.identity import SandboxIdentity

_log = logging.getLogger(__name__)

Response = TypeVar("Response", bound=Message)

MIB = 1 << 20
PIPE_SIZE = MIB  # the most that is given to anybody; fs.pipe-max-size of Linux
STREAMS = ("stdin", "stdout", "stderr")
# What a process that has not asked for them does not notice.
UNNOTICED = (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT)


def is_described(container: Container) -> bool:
    """Whether annotations of the container say that it is a unikernel."""
    return any(key.startswith(PREFIX) and value for key, value in annotations_of(container.spec).items())


def refuse_unikernel(container: Container) -> None:
    """Refuse a unikernel in a sandbox that runs already. Raises UnsupportedError."""
    if is_described(container):
        raise UnsupportedError(
            f"container {container.id} is a unikernel by its annotations, and its sandbox runs already: "
            "a unikernel is the only container of its sandbox"
        )


async def find_unikernel(container: Container, broker: Broker) -> Unikernel | None:
    """What the container's annotations or its image say of a unikernel; None when it is a Linux container.

    Raises:
        InvalidRequestError, UnsupportedError: they name one that cannot run.
    """
    unikernel = from_annotations(annotations_of(container.spec))
    if unikernel is None:
        try:
            file = await broker.open_in_image(_rootfs(container), FILE, write=False)
        except RequestFailedError:
            return None
        with os.fdopen(file, "rb") as content:
            unikernel = from_file(content.read(MAX_FILE + 1))
    if container.init.paths.terminal:
        raise UnsupportedError(
            f"container {container.id} is a unikernel, which has no terminal: ask for none"
        )
    for key in unikernel.ignored:
        _log.warning("the %s %s is not known here, and ignored", unikernel.origin, key)
    return unikernel


def _rootfs(container: Container) -> str:
    return os.path.join(container.home, "rootfs")


class UnikernelGuest:
    """A unikernel, its streams, and what is asked of it: a transport and a caller, as kata_agent has them."""

    def __init__(self, unikernel: Unikernel, container: Container) -> None:
        self._unikernel = unikernel
        self._container = container
        self._monitor: UnikernelVmm | None = None
        self._signal: int | None = None
        self._ended = asyncio.Event()
        # Our ends of the streams, in the order in which they are asked for, and the unikernel's by name.
        self._streams: list[socket.socket | FileIO] = []
        self._theirs: dict[str, socket.socket | FileIO] = {}
        self._calls: Mapping[str, Callable[[Any], Awaitable[Message | None]]] = {
            "CreateContainer": self._create,
            "StartContainer": self._start,
            "WaitProcess": self._wait,
            "SignalProcess": self._kill,
            "PauseContainer": self._pause,
            "ResumeContainer": self._resume,
            "RemoveContainer": self._remove,
        }

    # -- before the seal -----------------------------------------------------------------------------------

    async def prepare(
        self, configuration: Configuration, identity: SandboxIdentity, broker: Broker
    ) -> UnikernelVmm:
        """Open the unikernel's files and make its machine, which does not run yet.

        Raises:
            InvalidRequestError: the image lacks a file. UnsupportedError: the hypervisor does not run it.
            HypervisorError: the machine cannot be made; nothing is left of it.
        """
        from kata_hypervisor import registry

        self._unikernel.check_runner(configuration.hypervisor_name)
        monitor = registry.create_for_unikernel(
            configuration.hypervisor_name, configuration.hypervisor, broker
        )
        self._make_streams()
        with ExitStack() as files:
            binary = await self._open(broker, "binary", self._unikernel.binary, files)
            block = initrd = None
            if self._unikernel.block:
                block = BlockFile(await self._open(broker, "block", self._unikernel.block, files, write=True))
            if self._unikernel.initrd:
                initrd = await self._open(broker, "initrd", self._unikernel.initrd, files)
            process = self._container.spec["process"]
            await monitor.prepare(
                UnikernelSpec(
                    sandbox_id=identity.id[:64],
                    directory=Path(identity.directory),
                    memory_mib=self._memory(configuration.hypervisor.default_memory),
                    name=self._unikernel.binary,
                    file=binary,
                    output=self._theirs["stdout"].fileno(),
                    command_line=self._unikernel.command_line(process["args"], process.get("env") or ()),
                    block=block,
                    initrd=initrd,
                    unconfined=not (self._container.spec.get("linux") or {}).get("seccomp"),
                )
            )
        self._monitor = monitor
        return monitor

    async def _open(
        self, broker: Broker, key: str, name: str, files: ExitStack, *, write: bool = False
    ) -> int:
        try:
            descriptor = await broker.open_in_image(_rootfs(self._container), name, write=write)
        except RequestFailedError as error:
            raise InvalidRequestError(
                f"the {self._unikernel.origin} names {name!r} as the unikernel's {key}: {error}"
            ) from None
        files.callback(os.close, descriptor)
        return descriptor

    def _memory(self, default: int) -> int:
        """The container's memory limit where it has one, as urunc does it, in MiB."""
        resources = (self._container.spec.get("linux") or {}).get("resources") or {}
        limit = (resources.get("memory") or {}).get("limit")
        return max(limit // MIB, 1) if isinstance(limit, int) and limit > 0 else default

    def _make_streams(self) -> None:
        """A pair for each stream that the container has, and one for the output in any case."""
        paths = self._container.init.paths
        for name in STREAMS:
            if getattr(paths, name) or name == "stdout":
                ours, theirs = socket.socketpair() if name == "stdin" else _pipe()
                os.set_blocking(ours.fileno(), False)
                self._theirs[name] = theirs
                if getattr(paths, name):
                    self._streams.append(ours)
                else:
                    ours.close()  # nobody listens
        if (stdin := self._theirs.pop("stdin", None)) is not None:
            stdin.close()  # a unikernel reads none

    # -- a transport, for the streams ----------------------------------------------------------------------

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See kata_agent.transport.GuestTransport: the next stream of the container."""
        if not self._streams:
            raise _unimplemented("run another process in it")
        # What moves a container's output asks for no more than a descriptor, which a pipe has too.
        return cast(socket.socket, self._streams.pop(0)), len(self._streams)

    # -- a client, for the calls ---------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self._ended.is_set()

    async def wait_closed(self) -> None:
        """Return when `aclose` was called."""
        await self._ended.wait()

    async def aclose(self) -> None:
        """Close the streams' ends that are left. Idempotent."""
        self._ended.set()
        for one in (*self._streams, *self._theirs.values()):
            one.close()
        self._streams.clear()
        self._theirs.clear()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: float | None = None,
    ) -> Response:
        """Do what an agent would be asked for. Raises RpcError: Unimplemented, or what its monitor says."""
        function = self._calls.get(method)
        if function is None:
            raise _unimplemented(method)
        answer = await function(request)
        return response_type() if answer is None else response_type.FromString(answer.SerializeToString())

    def _running(self) -> UnikernelVmm:
        if self._monitor is None:
            raise RpcError(Code.FAILED_PRECONDITION, "the unikernel is not prepared")
        return self._monitor

    async def _create(self, request: agent_pb2.CreateContainerRequest) -> None:
        """It was made before the seal; there is no other."""
        if request.container_id != self._container.id:
            raise _unimplemented(f"run container {request.container_id} beside it")

    async def _start(self, request: agent_pb2.StartContainerRequest) -> None:
        await self._running().run()

    async def _wait(self, request: agent_pb2.WaitProcessRequest) -> agent_pb2.WaitProcessResponse:
        end = await self._running().wait()
        _log.info("container %s: %s", self._container.id, end.reason)
        status = self._status(end)
        if self._signal is None and _needs_words(end):
            self._say(f"kata: {end.reason}\n")
        self._close_output()
        return agent_pb2.WaitProcessResponse(status=status)

    def _status(self, end: VmExit) -> int:
        number = self._signal if self._signal is not None else end.status.signal
        return end.status.code or 0 if number is None else 128 + number

    def _say(self, text: str) -> None:
        """A last line of the runtime's own, behind what the unikernel has printed."""
        stream = self._theirs.get("stderr") or self._theirs.get("stdout")
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
            try:
                os.write(stream.fileno(), text.encode())
            except OSError as error:
                _log.debug("no room for a notice on the container's output: %s", error)

    def _close_output(self) -> None:
        """Let the streams' readers see the end."""
        for one in self._theirs.values():
            one.close()
        self._theirs.clear()

    async def _kill(self, request: agent_pb2.SignalProcessRequest) -> None:
        if request.signal in UNNOTICED:
            return
        if self._signal is None:
            self._signal = request.signal
        await self._running().stop()

    async def _pause(self, request: agent_pb2.PauseContainerRequest) -> None:
        await self._running().pause()

    async def _resume(self, request: agent_pb2.ResumeContainerRequest) -> None:
        await self._running().resume()

    async def _remove(self, request: agent_pb2.RemoveContainerRequest) -> None:
        await self._running().stop()


def _pipe() -> tuple[FileIO, FileIO]:
    """For output: where a monitor writes byte by byte, a pipe holds a thousand times what a socket does.

    Firecracker drops what there is no room for, so there is as much as can be had.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return FileIO(reader, "r"), FileIO(writer, "w")


def _needs_words(end: VmExit) -> bool:
    """Whether the end was not the unikernel's own: it was killed, or its monitor has complained."""
    complained = any(heading.endswith("stderr") for heading in end.diagnostics)
    return end.status.signal is not None or (complained and end.status.code != 0)


WORDS: Mapping[str, str] = {
    "ExecProcess": "run another process in it",
    "UpdateContainer": "change its limits",
    "StatsContainer": "count what it uses",
    "TtyWinResize": "set the size of its terminal",
}


def _unimplemented(method: str) -> RpcError:
    words = WORDS.get(method, method)
    return RpcError(Code.UNIMPLEMENTED, f"cannot {words}: the container is a unikernel, which has no agent")
