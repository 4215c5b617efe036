"""Runs a command, lets every call of it through, and writes down which they were."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

from kata_hypervisor.seccomp import actions, bpf, notification, syscalls
from kata_hypervisor.seccomp.notification import Call
from kata_hypervisor.seccomp.supervised import SupervisedCommand
from kata_hypervisor.seccomp.trace import Arguments, Observation, Trace
from kata_hypervisor.seccomp.trace_arguments import keep

_EVERYTHING = struct.pack("=HBBI", bpf.RET | bpf.K, 0, 0, actions.NOTIFY)
_MAX_VALUES = 256
_LOOK_AGAIN = 256
_NAME_LENGTH = 15
_PR_SET_NAME = 15
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8


class Origin(NamedTuple):
    """Who makes a call. program: the name of its executable; thread: the thread's own name."""

    program: str
    thread: str


_UNKNOWN = Origin("?", "?")


class Recorder:
    """Counts the calls of a command by origin, name and kept arguments.

    The first call is the command's own execve.
    """

    def __init__(self, command: Sequence[str], arch: str) -> None:
        self._arch = arch
        self._native = bpf.AUDIT_ARCH[arch]
        self._command = list(command)
        self._begun = False
        self._counts: dict[tuple[Origin, str, int, Arguments], int] = {}
        self._varieties: dict[tuple[Origin, str], set[Arguments]] = {}
        self._origins: dict[int, tuple[Origin, int]] = {}
        self.refused_listeners = 0

    def answer(self, listener: int, call: Call) -> None:
        """Note a call and let it through."""
        name = self._name(call)
        origin = self._origin(listener, call)
        if not self._begun and name in ("execve", "execveat"):
            self._begun = True
            program = os.path.basename(self._command[0])
            origin = Origin(program, program[:_NAME_LENGTH])
        if self._begun:
            self._count(origin, name, call)
        if name in ("execve", "execveat", "exit", "exit_group") or (
            name == "prctl" and call.arguments[0] == _PR_SET_NAME
        ):
            self._origins.pop(call.tid, None)
        if name == "seccomp" and _asks_for_listener(call):
            self.refused_listeners += 1
        notification.let_through(listener, call)

    def observations(self) -> tuple[Observation, ...]:
        """What was seen, in the order of programs, threads and calls."""
        seen = [
            Observation(origin.program, origin.thread, name, number, arguments, count)
            for (origin, name, number, arguments), count in self._counts.items()
        ]
        return tuple(sorted(seen, key=lambda o: (o.program, o.thread, o.number, o.arguments)))

    def _name(self, call: Call) -> str:
        if call.arch != self._native:
            arch = next(
                (name for name, value in bpf.AUDIT_ARCH.items() if value == call.arch), hex(call.arch)
            )
            return f"{arch}:{call.number}"
        return syscalls.name_of(call.number, self._arch) or f"{self._arch}:{call.number}"

    def _count(self, origin: Origin, name: str, call: Call) -> None:
        arguments = keep(name, call.arguments)
        varieties = self._varieties.setdefault((origin, name), set())
        if arguments not in varieties:
            if len(varieties) >= _MAX_VALUES:
                arguments = ()
            varieties.add(arguments)
        key = (origin, name, call.number & 0xFFFFFFFF, arguments)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _origin(self, listener: int, call: Call) -> Origin:
        """Who calls; looked up again now and then, because names change."""
        origin, left = self._origins.get(call.tid, (_UNKNOWN, 0))
        if left == 0:
            origin, left = read_origin(call.tid), _LOOK_AGAIN
            if not notification.is_waiting(listener, call):
                return _UNKNOWN
        self._origins[call.tid] = (origin, left - 1)
        return origin


def record(command: Sequence[str]) -> tuple[Trace, int]:
    """Run a command to its end, with all its descendants, and return what they called.

    Also returns how often a program in it asked for a listener of its own, which it could not have.

    Raises:
        LaunchError: the command cannot be run.
        SealError: this kernel has no notifications.
        LookupError: this architecture has no table of calls.
    """
    arch = syscalls.native()
    syscalls.preload(arch)
    recorder = Recorder(command, arch)
    with SupervisedCommand(command, _EVERYTHING) as supervised:
        status = supervised.run(recorder.answer)
    trace = Trace(arch, platform.release(), tuple(command), status, recorder.observations())
    return trace, recorder.refused_listeners


def _asks_for_listener(call: Call) -> bool:
    """Whether it would install a filter with a listener; without a filter it only asks what there is."""
    operation, flags, program = call.arguments[:3]
    return operation == _SET_MODE_FILTER and bool(flags & _NEW_LISTENER) and program != 0


def read_origin(tid: int) -> Origin:
    """The program and the name of a thread; "?" where they cannot be read."""
    try:
        with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as file:
            thread = file.read().rstrip("\n")
        program = os.path.basename(os.readlink(f"/proc/{tid}/exe"))
    except OSError:
        return _UNKNOWN
    return Origin(program.removesuffix(" (deleted)"), thread)
