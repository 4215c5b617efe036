"""The user of a pod, and its PID namespace: what its processes have in common, and share with no other pod.

A uid (and the gid of the same number) is taken by a file of its name, made exclusively below the runtime's
state directory, with the sandbox's key in it. The rollback journal removes it after the pod's processes: a
uid whose sandbox was not cleaned up is not given again.

The namespace has an init of its own, a child of the broker which holds nothing and only waits. So a VMM is
not process 1, which the kernel spares signals that it has no handler for: its own abort(3), for one. When the
broker exits, the kernel kills the init, and with it whatever is in the namespace.
"""

from __future__ import annotations

import errno
import os
import signal

from kata_runtime import syscalls
from kata_runtime.broker import claims, messages, processes
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.identity import SandboxIdentity

DIRECTORY = "uids"
"""In the runtime's state directory: a file for each uid that a pod has."""

UNDO = "uid"
INIT = "init"


class PodIdentity:
    """The user and PID namespace of one sandbox; nothing until `take`."""

    def __init__(self, identity: SandboxIdentity, journal: RollbackJournal) -> None:
        self._key = identity.key
        self._place = identity.directory
        self._journal = journal
        self._user = -1
        self._own = self._pids = -1
        self._init = 0

    @property
    def place(self) -> str:
        """A directory on which a child may mount its root, in a namespace of its own."""
        return self._place

    @property
    def user(self) -> int:
        """The pod's uid, and gid. Raises RequestRefusedError: it has none."""
        if self._user < 0:
            raise RequestRefusedError("the sandbox has no user yet: take_user comes before its processes")
        return self._user

    def take(self, base: int, count: int) -> int:
        """Take a uid of the range [base, base + count) that no other pod has; once.

        Raises:
            RequestRefusedError: the sandbox has one already.
            RequestFailedError: all are taken.
        """
        if self._user >= 0:
            raise RequestRefusedError("take_user: the sandbox has its user already")
        directory = os.path.join(os.path.dirname(self._place), DIRECTORY)
        first = int(self._key[:8], 16)
        for step in range(count):
            uid = base + (first + step) % count
            path = os.path.join(directory, str(uid))
            if not os.path.exists(path) and claims.take(path, self._key, self._journal, UNDO):
                self._user = uid
                return uid
        raise RequestFailedError(
            f"all {count} users from {base} on are taken by other pods ({directory}): raise "
            "sandbox_uid_count in [runtime]",
            errno.EAGAIN,
        )

    # -- the PID namespace ---------------------------------------------------------------------------------

    @property
    def init(self) -> int:
        """Process id of the pod's init; 0 without one."""
        return self._init

    def start_init(self, network: int | None) -> int:
        """Make the namespace and its init, which lives in a network namespace; return the init's pid.

        network: a descriptor; None for a namespace of its own.

        Raises:
            RequestRefusedError: there is one already. RequestFailedError, OSError: it cannot be made.
        """
        if self._init:
            raise RequestRefusedError("the sandbox has its init already")
        self._make_namespace(network)
        return self._init

    def fork(self) -> int:
        """As os.fork, into the pod's PID namespace. Raises OSError."""
        if self._pids < 0:
            self._make_namespace(None)
        syscalls.enter_pids(self._pids)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                syscalls.enter_pids(self._own)
        return pid

    def _make_namespace(self, network: int | None) -> None:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        read, write = os.pipe2(os.O_CLOEXEC)  # `write` stays open as long as the broker
        ready, done = os.pipe2(os.O_CLOEXEC)
        self._own, pid = own, 0
        try:
            code = _waiting_filter()
            pid = self._fork_init(network, code, read, done)
            self._journal.push("process", pid=pid, start=processes.start_time(pid), name=INIT)
            os.close(done)
            done = -1
            if (failed := os.read(ready, 1000)) != b"ready":
                why = failed.decode(errors="replace") or "it was killed"  # a long sentence comes cut
                raise RequestFailedError(f"cannot start the pod's init: {why}")
            self._pids = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            messages.close_all([own, write])
            self._own = -1
            if pid:
                os.kill(pid, signal.SIGKILL)  # not waited for: the broker reaps every child of its own
            raise
        finally:
            messages.close_all([fd for fd in (read, ready, done) if fd >= 0])
        self._init = pid

    def _fork_init(self, network: int | None, code: bytes, wait: int, report: int) -> int:
        syscalls.unshare_pids()
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                syscalls.enter_pids(self._own)
        if pid == 0:
            _be_init(self._place, self.user, network, code, wait, report)
        return pid


def _waiting_filter() -> bytes:
    """A seccomp program: a process may wait in read(2), and exit."""
    from kata_hypervisor.seccomp import actions, bpf, syscalls

    arch = syscalls.native()
    numbers = [syscalls.numbers(arch)[name] for name in ("read", "rt_sigreturn", "exit_group")]
    load, equal, leave = bpf.LD | bpf.ABS, bpf.JMP | bpf.JEQ | bpf.K, bpf.RET | bpf.K
    tests = [(equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    return bpf.encode(
        [
            *((load, 0, 0, 4), (equal, 0, len(tests) + 1, bpf.AUDIT_ARCH[arch]), (load, 0, 0, 0)),
            *tests,
            *((leave, 0, 0, actions.KILL_PROCESS), (leave, 0, 0, actions.ALLOW)),
        ]
    )


def _be_init(place: str, user: int, network: int | None, code: bytes, wait: int, report: int) -> NoReturn:
    """Process 1: give up everything, and wait in one system call for the end of the broker."""
    from kata_hypervisor.seccomp import filter as kernel  # both are loaded already
    from kata_runtime.broker import confined_child

    try:
        syscalls.die_with_parent(signal.SIGKILL)
        os.setsid()
        for number in signal.valid_signals():
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
        syscalls.set_name("kata-init")
        if network is not None:
            syscalls.enter_network(network)
        os.dup2(wait, 0)
        os.dup2(report, 1)
        syscalls.close_all_but({0, 1})
        confined_child.enter_nothing(place, user, network=network is None)
        os.write(1, b"ready")
        syscalls.close_all_but({0})
        syscalls.die_with_parent(signal.SIGKILL)
        kernel.install(code, all_threads=False, listener=False)
        os.read(0, 1)
    except confined_child.StepFailedError as error:
        os.write(1, str(error).encode()[:1000])
    finally:
        os._exit(1)
