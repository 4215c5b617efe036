"""QEMU's monitor: QMP over a socket whose other end QEMU inherited.

The protocol is qemu.qmp's; here are the errors of this package, bounds on what a VMM may send, and the
events that matter. Source: QEMU's qapi/run-state.json, events SHUTDOWN and STOP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress

from qemu.qmp import ConnectError, EventListener, Message, QMPClient, Runstate

from kata_hypervisor.errors import HypervisorError

MESSAGE_LIMIT = 1024 * 1024
"""Bytes of the longest message that is read; the VMM may have been taken over by its guest."""

FAULTS = ("internal-error", "io-error")
"""Run states of which nobody but the guest is the cause. Source: QEMU's qapi/run-state.json, RunState."""

# The client raises whatever its reader failed on, and that is what QEMU sent: a list in place of a name is a
# TypeError, for one.
_FAILURES = Exception

# Whatever the client logs, it also raises, and the exception is what the caller reports.
_silent = logging.getLogger(f"{__name__}.client")
_silent.propagate = False
_silent.addHandler(logging.NullHandler())


class QmpError(HypervisorError):
    """The monitor is gone, silent, or refused a command."""


class QmpClient:
    """The monitor of one QEMU process. The socket belongs to it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._connecting = asyncio.Lock()
        self._client = QMPClient(readbuflen=MESSAGE_LIMIT)
        self._client.logger = _silent
        self._shutdown = EventListener("SHUTDOWN", self._is_first)
        self._client.register_listener(self._shutdown)
        self._stops = EventListener("STOP")
        self._client.register_listener(self._stops)
        self._deletions: dict[str, asyncio.Future[None]] = {}
        self._client.register_listener(EventListener("DEVICE_DELETED", self._note_deletion))

    def _is_first(self, event: Message) -> bool:
        return not self._shutdown.history

    def _note_deletion(self, event: Message) -> bool:
        data = event.get("data")
        name = data.get("device") if isinstance(data, Mapping) else None
        if isinstance(name, str) and (found := self._deletions.pop(name, None)) and not found.done():
            found.set_result(None)
        return False  # nobody reads them from the queue

    def deletion(self, device: str) -> asyncio.Future[None]:
        """What is done when QEMU reports that a device is gone. Cancel it when nobody waits any more."""
        self._deletions[device] = asyncio.get_running_loop().create_future()
        return self._deletions[device]

    async def connect(self) -> None:
        """Read QEMU's greeting and agree on capabilities.

        Raises:
            QmpError: the other end closed the connection, or does not speak QMP.
        """
        try:
            async with self._connecting:
                await self._client.connect(self._socket)
        except _FAILURES as error:
            raise QmpError(f"qemu's monitor sent no usable greeting: {_describe(error)}") from error

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a command and return its result.

        Raises:
            QmpError: QEMU refused it, or the connection ended.
        """
        try:
            return await self._client.execute(command, None if arguments is None else dict(arguments))
        except _FAILURES as error:
            raise QmpError(f'qemu\'s monitor did not perform "{command}": {_describe(error)}') from error

    async def wait_fault(self) -> str:
        """Return when QEMU has stopped the machine because it cannot go on: "internal-error", "io-error".

        Raises:
            QmpError: the connection ended.
        """
        while True:
            await self._stops.get()
            answer = await self.execute("query-status")
            status = answer.get("status") if isinstance(answer, Mapping) else None
            if status in FAULTS:
                return str(status)

    @property
    def ended(self) -> bool:
        """Whether the other end has closed the connection, or was never connected."""
        return self._client.runstate is not Runstate.RUNNING

    async def wait_ended(self) -> None:
        """Return when the other end has closed the connection; all that it sent before was read by then."""
        while not self.ended:
            await self._client.runstate_changed()

    async def aclose(self) -> None:
        """Close the connection; a `connect` that is under way fails."""
        with suppress(OSError):  # not connected, or not any more
            self._socket.shutdown(socket.SHUT_RDWR)
        async with self._connecting:
            with suppress(_FAILURES):  # raises what ended the connection, and that was wanted
                await self._client.disconnect()
        self._socket.close()

    @property
    def shutdown_reason(self) -> str | None:
        """Why QEMU reports that it exits, such as "guest-shutdown"; None when it has reported nothing."""
        for event in self._shutdown.history:
            data = event.get("data")
            reason = data.get("reason") if isinstance(data, Mapping) else None
            return reason if isinstance(reason, str) else None
        return None


def _describe(error: BaseException) -> str:
    if isinstance(error, ConnectError):
        error = error.exc
    # The client asserts that it is connected when it is: the other end was quicker.
    closed = isinstance(error, EOFError | AssertionError)
    return "it closed the connection" if closed else (str(error) or type(error).__name__)
