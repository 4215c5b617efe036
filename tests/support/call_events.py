"""The kernel's trace of system calls, followed through forks and filters: what is called under which policy.

Lines are those of tracefs's trace_pipe, of the events in `EVENTS` and the marks of tests. A call is seen when
all filters have let it through; one that a filter has answered with an error only when it returns. Sources:
Documentation/trace/ftrace.rst and events.rst, kernel/entry/syscall-common.c (Linux).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from kata_hypervisor.seccomp import syscalls
from policy_use import ARCHITECTURE, POLICIES, Distinctions, policy_named, spell

EVENTS = (
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "sched/sched_process_fork",
    "sched/sched_process_exec",
    "task/task_rename",
)
REFUSED = "ret < 0 && ret > -134"
"""Returns that are of interest: of a call that was not seen to begin."""
ANSWERED = (-1, -38, -107)
"""The errors with which policies answer: EPERM, ENOSYS, ENOTCONN."""
MARK = "test: "

_LINE = re.compile(
    r"-(\d+) +\( *([\d-]+)\) +\[\d+\].*?: "
    r"(sys_enter|sys_exit|sched_process_\w+|task_rename|tracing_mark_write): (.*)"
)
_NUMBERS = syscalls.numbers(ARCHITECTURE)
_SECCOMP, _SET_MODE_FILTER, _TSYNC = _NUMBERS["seccomp"], 1, 1
_PENDING = "?"
"""The policy of a child between its filter and its program."""
_PROGRAMS = {
    "qemu-system": "qemu",
    "virtiofsd": "virtiofsd",
    "cloud-hypervisor": "cloud-hypervisor",
    "solo5-hvt": "solo5-hvt",
}
_OWN = {"kata-shim": "shim", "kata-broker": "broker"}


@dataclass(slots=True)
class Task:
    """A thread: the name that it took, its process (0: unknown), its policy, and the number of its last call.

    waiting: its calls, with their arguments, since it put on a filter for a program that is still unknown.
    """

    name: str = ""
    process: int = 0
    policy: str = ""
    call: int = -1
    waiting: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


@dataclass(slots=True)
class Follower:
    """Takes the lines of a trace; `record` is what it makes of them, as in `policy_use`. lost: how often
    the kernel had no room for events."""

    record: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in POLICIES})
    lost: int = 0
    test: str = "?"
    _tasks: dict[int, Task] = field(default_factory=dict)
    _policies: dict[str, Distinctions] = field(
        default_factory=lambda: {name: Distinctions(policy_named(name)) for name in POLICIES}
    )

    def take(self, lines: Iterable[str]) -> None:
        """Follow these lines, which come after all that were given before."""
        for line in lines:
            found = _LINE.search(line)
            if found is None:
                self.lost += "LOST" in line
                continue
            task = self._tasks.setdefault(int(found[1]), Task())
            if found[2].isdecimal():
                task.process = int(found[2])
            getattr(self, "_" + found[3])(task, found[4])

    def _tracing_mark_write(self, _: Task, text: str) -> None:
        if text.startswith(MARK):
            self.test = text.removeprefix(MARK).strip()

    def _task_rename(self, task: Task, text: str) -> None:
        task.name = re.findall(r"newcomm=(.*) oom_score_adj=", text)[0]

    def _sched_process_fork(self, parent: Task, text: str) -> None:
        self._tasks[int(text.rpartition("child_pid=")[2])] = Task(policy=parent.policy)

    def _sched_process_exec(self, task: Task, text: str) -> None:
        if task.policy == _PENDING:
            program = re.findall(r"filename=(\S*)", text)[0].rpartition("/")[2]
            task.policy = next((name for start, name in _PROGRAMS.items() if program.startswith(start)), "")
            for number, arguments in task.waiting if task.policy else ():
                self._note(task.policy, number, arguments)
            task.waiting.clear()

    def _sys_enter(self, task: Task, text: str) -> None:
        number, _, rest = text.removeprefix("NR ").partition(" ")
        task.call = int(number)
        if not task.policy and task.call != _SECCOMP:
            return
        arguments = tuple(int(one, 16) for one in rest.strip("()").split(", "))
        if task.policy == _PENDING:
            task.waiting.append((task.call, arguments))
        elif task.policy:
            self._note(task.policy, task.call, arguments)
        elif arguments[0] == _SET_MODE_FILTER and arguments[2]:  # libseccomp asks without a program
            self._filtered(task, arguments[1])

    def _sys_exit(self, task: Task, text: str) -> None:
        number, _, result = text.removeprefix("NR ").partition(" = ")
        if task.policy in POLICIES and int(number) != task.call and int(result) in ANSWERED:
            name = syscalls.name_of(int(number), ARCHITECTURE) or ""
            if self._policies[task.policy].answers(name):  # else it was stopped, and the pod with it
                self.record[task.policy].setdefault(name, self.test)
        task.call = -1

    def _note(self, policy: str, number: int, arguments: tuple[int, ...]) -> None:
        """Record a call that the policy lets through; another was made under a wider filter of a test."""
        name = syscalls.name_of(number, ARCHITECTURE) or ""
        kept = self._policies[policy].kept(name, arguments)
        if kept is not None:
            self.record[policy].setdefault(spell(name, kept), self.test)

    def _filtered(self, task: Task, flags: int) -> None:
        """A filter was put on: by the runtime's own processes on themselves, by a child for its program."""
        task.policy = _OWN.get(task.name, _PENDING)
        if flags & _TSYNC and task.process:
            for other in self._tasks.values():
                if other.process == task.process:
                    other.policy = task.policy
