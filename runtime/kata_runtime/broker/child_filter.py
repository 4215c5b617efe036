"""Supervision of a child that starts under a filter of ours, because it has none of its own.

The filter lets through what the child needs for all its life, and asks here about everything else. Until its
loading ends (with a call that the filter's maker names, with its execve, or when the shim says that its
machine is made) the child may also do what loading takes: a second program says what that is, of openings the
broker looks at the path, and only its own execve is let through. From then on nothing is: the call is named,
and the child is killed without having made it.

A path is read from the child's memory while it waits. It cannot change meanwhile: such a child has one thread
(its policy allows it to make no other), and shares memory with nobody but a guest that does not run yet. Of a
child that makes threads no path is looked at: its root directory bounds what it opens.
"""

from __future__ import annotations

import base64
import os

from kata_hypervisor.seccomp import notification, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from kata_hypervisor.seccomp.bpf import Instruction
    from kata_hypervisor.seccomp.notification import Call

EXECUTIONS = ("execve", "execveat")
OPENINGS = {"open": (0, 1), "openat": (1, 2)}
"""Which arguments of a call are the path and the flags."""

_PAGE = 4096
_WRITING = os.O_WRONLY | os.O_RDWR


class ChildFilterSupervisor:
    """One child's filter.

    fields: those of a `kata_hypervisor.seccomp.child_filter.ChildFilter`, as `operations.checks`
    has checked them. listener: the descriptor of its filter, this object's own, -1 until `take_listener`.
    """

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self._name = name
        self._policy: str = fields["policy"]
        self._advice: str = fields["advice"]
        self._loading = base64.b64decode(fields["loading"])
        self._program: Sequence[Instruction] | None = None
        self._last: list[int] = fields["last"]
        self._readable, self._writable = frozenset(fields["readable"]), frozenset(fields["writable"])
        self._until_told: bool = fields["until_told"]
        self._any_path: bool = fields["any_path"]
        self._executed = self._loaded = False
        self._refused = ""
        self.listener = -1
        syscalls.preload(syscalls.native())

    def take_listener(self, listener: int) -> None:
        """Take over the listener."""
        self.listener = listener

    def end_loading(self) -> None:
        """From here on nothing that waits for an answer is let through. Idempotent."""
        self._loaded = True

    def answer(self) -> str | None:
        """Answer the call that waits, if one does; returns a sentence when the child must be killed for it.

        The call is then left unanswered, and ends with the child.
        """
        call = notification.receive(self.listener)
        if call is None:
            return None
        name = syscalls.name_of(call.number, syscalls.native()) or f"call {call.number}"
        stage = "when it had loaded" if self._loaded else "while it was loading"
        if self._may(call, name):
            notification.let_through(self.listener, call)
            return None
        arguments = ", ".join(f"{value:#x}" for value in call.arguments)
        return (
            f"seccomp: {self._name} called {name} ({call.number}) {stage}, which policy {self._policy} does "
            f"not allow{self._refused}, and was killed ({self._advice}); arguments: {arguments}"
        )

    def _may(self, call: Call, name: str) -> bool:
        if self._loaded:
            return False
        if name in EXECUTIONS:
            first, self._executed = not self._executed, True
            self._loaded = not (self._last or self._until_told)
            return first
        if not self._is_loading(call):
            return False
        if name in OPENINGS and not self._any_path:
            return self._may_open(call, *OPENINGS[name])
        self._loaded = [call.number, call.arguments[1] & 0xFFFFFFFF] == self._last
        return True

    def _is_loading(self, call: Call) -> bool:
        """Whether the second program allows it."""
        from kata_hypervisor.seccomp import bpf  # most children are not asked about while they load

        if self._program is None:
            self._program = bpf.decode(self._loading)
        data = bpf.SeccompData(call.number, call.arch, call.instruction_pointer, call.arguments)
        return bpf.is_allowed(bpf.execute(self._program, data.words()))

    def _may_open(self, call: Call, path_at: int, flags_at: int) -> bool:
        path = _read_text(call.tid, call.arguments[path_at])
        if call.arguments[flags_at] & _WRITING:
            allowed = path in self._writable
        else:
            allowed = path in self._readable or path in self._writable or _is_library(path)
        self._refused = "" if allowed else f" with the path {path[:200]!r}"
        return allowed and notification.is_waiting(self.listener, call)

    def close(self) -> None:
        """Stop supervising: what the child asks from here on gets ENOSYS from the kernel. Idempotent."""
        if self.listener >= 0:
            os.close(self.listener)
            self.listener = -1


def _is_library(path: str) -> bool:
    """Whether a path is that of a shared library, by its name: libc.so.6, ld-musl-x86_64.so.1, libm.so."""
    name = os.path.basename(path)
    return path.startswith("/") and (name.endswith(".so") or ".so." in name)


def _read_text(tid: int, address: int) -> str:
    """The string at an address of a thread that waits; empty where there is none."""
    found = b""
    try:
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            while b"\0" not in found and len(found) < _PAGE:
                memory.seek(address + len(found))
                piece = memory.read(_PAGE - (address + len(found)) % _PAGE)
                if not piece:
                    return ""
                found += piece
    except (OSError, OverflowError):
        return ""
    return os.fsdecode(found.partition(b"\0")[0])
