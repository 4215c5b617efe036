"""A VMM's monitor, held by the broker: from the seal on it passes a list of commands, and nothing else.

The shim has a socket that ends here. What the VMM sends goes up as it is. What the shim sends goes down as it
is until the monitor is sealed; afterwards a guest may own the shim, and a VMM can be asked to open files,
sockets and devices of the host. So each message is then parsed, must be one that the driver declares, and is
written anew: the VMM reads what was checked. Anything else ends the pod.

QEMU's monitor is sealed with the shim, and takes `monitor_commands` with the arguments that they declare; a
REST interface (`api_filter`) is sealed when it is handed over, after the machine is described. No descriptor
of the shim's goes to a VMM, but what the broker gives it does (`Monitor.give`), with the next command.

Source of QEMU's protocol: docs/interop/qmp-spec.rst: {"execute": NAME, "arguments": {...}, "id": ANY}.
"""

from __future__ import annotations

import json
import os
import select
import socket

from kata_runtime.broker.event_loop import READABLE, WRITABLE
from kata_runtime.broker.schema import Fitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from kata_hypervisor.api_request import Schema
    from kata_runtime.broker.event_loop import EventLoop

    class Filter(Protocol):
        """Checks what goes to a VMM."""

        def take(self, data: bytes) -> bytes:
            """Return what is complete, written anew. Raises NotAllowedError."""


PIECE = 1 << 16
"""Bytes that are read at a time; as long as they are not written, no more are read."""
LONGEST = 4096
"""Bytes of the longest message to the VMM after the seal."""


class NotAllowedError(Exception):
    """What the shim sent is not among what its VMM may be asked. One line."""


class CommandFilter:
    """Checks what goes to a VMM after the seal.

    commands: names that may be executed, each with the schema of its arguments, None for none.
    """

    def __init__(self, commands: Mapping[str, Schema | None]) -> None:
        self._commands = commands
        self._fitting = Fitting()
        self._partial = b""

    def take(self, data: bytes) -> bytes:
        """Return the commands that are complete, written anew. Raises NotAllowedError."""
        self._partial += data
        passed = b""
        while text := self._partial.lstrip():
            try:
                message, end = _DECODER.raw_decode(text.decode("ascii"))
            except (ValueError, RecursionError):
                if len(text) > LONGEST or not text.startswith(b"{"):
                    raise NotAllowedError(f"it is not a command: {text[:100]!r}") from None
                break  # the rest may be on its way
            passed += self._rewrite(message)
            self._partial = text[end:]
        else:
            self._partial = b""
        return passed

    def _rewrite(self, message: object) -> bytes:
        if not isinstance(message, dict):
            raise NotAllowedError(f"it is not a command: {str(message)[:100]!r}")
        name, number = message.get("execute"), message.get("id")
        if not isinstance(name, str) or name not in self._commands:
            raise NotAllowedError(f"the command {str(name)[:100]!r} is not allowed")
        if further := message.keys() - {"execute", "id", "arguments"}:
            raise NotAllowedError(f"the command {name!r} has {sorted(further)[0][:100]!r}")
        arguments = message.get("arguments", {})
        if (wrong := self._fitting.find_misfit(self._commands[name] or {}, arguments)) is not None:
            raise NotAllowedError(f"the command {name!r} has arguments that are not allowed: {wrong}")
        if number is not None and not isinstance(number, str | int):
            raise NotAllowedError(f"the command {name!r} has an id that is neither a string nor a number")
        checked: dict[str, Any] = {"execute": name}
        checked |= {"arguments": arguments} if arguments else {}
        checked |= {"id": number} if "id" in message else {}
        return json.dumps(checked).encode()


_DECODER = json.JSONDecoder()


class Monitor:
    """One VMM's monitor and the shim's end of it, with what is on its way between them.

    vmm: the socket to the VMM, this object's own. rules: what passes. sealed: whether they are in force;
    None: they are. refuse: called, once, with a sentence when the shim sends what it must not.
    """

    def __init__(
        self,
        vmm: socket.socket,
        rules: Filter,
        loop: EventLoop,
        sealed: Callable[[], bool] | None,
        refuse: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sealed = sealed
        self._refuse = refuse
        self._filter = rules
        self._vmm = vmm
        self._shim, self._theirs = socket.socketpair()
        self._up = self._down = b""
        self._given: list[int] = []
        self._open = True
        for end, callback in ((self._vmm, self._on_vmm), (self._shim, self._on_shim)):
            end.setblocking(False)
            loop.add(end.fileno(), callback)

    def hand_over(self) -> int:
        """Return the descriptor of the shim's end, once; the caller's to close."""
        return self._theirs.detach()

    @property
    def gives(self) -> bool:
        """Whether a descriptor waits for the next bytes."""
        return bool(self._given)

    def give(self, descriptor: int) -> None:
        """Send a descriptor to the VMM with the next bytes to it; this object's from here on."""
        self._given.append(descriptor)

    def _on_vmm(self, events: int) -> None:
        if self._may_go_on(self._pass_up, events):
            self._wait()

    def _on_shim(self, events: int) -> None:
        if self._may_go_on(self._pass_down, events):
            self._wait()

    def _may_go_on(self, move: Callable[[], bool], events: int) -> bool:
        """Move what can be moved; close both ends when one is gone."""
        try:
            self._up, self._down = _send(self._shim, self._up), _send(self._vmm, self._down, self._given)
            if not events & ~WRITABLE or move():
                self._up, self._down = _send(self._shim, self._up), _send(self._vmm, self._down, self._given)
                # Who has hung up is not waited for by an end that does not read.
                if not events & (select.POLLHUP | select.POLLERR) or not (self._up or self._down):
                    return True
        except ConnectionError:
            pass  # as if it had closed
        except NotAllowedError as error:
            self._refuse(
                f"the shim sent to its VMM's monitor what it must not: {error}; a shim does so only "
                "when it is taken over, so the pod was ended"
            )
        self.close()
        return False

    def _pass_up(self) -> bool:
        if self._up:
            return True
        self._up = data = _receive(self._vmm)
        return data != b"" or not self._gone(self._vmm)

    def _pass_down(self) -> bool:
        if self._down:
            return True
        data = _receive(self._shim)
        in_force = self._sealed is None or self._sealed()
        self._down = self._filter.take(data) if in_force and data else data
        return data != b"" or not self._gone(self._shim)

    def _gone(self, end: socket.socket) -> bool:
        try:
            return end.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    def _wait(self) -> None:
        """Read an end only while what it said before has been passed on."""
        self._loop.change(self._vmm.fileno(), (not self._up) * READABLE | bool(self._down) * WRITABLE)
        self._loop.change(self._shim.fileno(), (not self._down) * READABLE | bool(self._up) * WRITABLE)

    def close(self) -> None:
        """Hang up on both; idempotent."""
        if self._open:
            self._open = False
            for end in (self._vmm, self._shim):
                self._loop.remove(end.fileno())
                end.close()
            self._theirs.close()
            _close_all(self._given)


def _receive(end: socket.socket) -> bytes:
    """What can be read now; nothing when there is none, or no more."""
    try:
        return end.recv(PIECE)
    except BlockingIOError:
        return b""


def _send(end: socket.socket, data: bytes, given: list[int] | None = None) -> bytes:
    """Write what can be written now; return the rest. given: descriptors that go along, and are closed."""
    if data:
        try:
            if given:
                data = data[socket.send_fds(end, [data], given, socket.MSG_NOSIGNAL) :]
                _close_all(given)
            else:
                data = data[end.send(data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
    return data


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
