"""Starting a child: fork, put everything in its place, exec; the parent reports what fails in the child."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
from functools import partial

from kata_runtime import syscalls
from kata_runtime.broker import confined_child, processes
from kata_runtime.broker.errors import RequestFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from kata_runtime.broker.child_filter import ChildFilterSupervisor
    from kata_runtime.broker.confined_child import Plan

GO, LISTENER, USERS, FAILED, UNCONFINED = b"g", b"listener", b"users", b"failed", b"unconfined"
"""What parent and child send each other; the child's end of file says that it runs, or is at its gate."""

NOT_RUN = 127

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_executable(name: str, path: str) -> None:
    """Raise RequestFailedError unless the path is a regular file that may be executed."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _failure(name, path, error) from None
    if not stat.S_ISREG(mode):
        raise RequestFailedError(f"cannot start {name}: {path}: not a regular file")
    if not os.access(path, os.X_OK):
        raise RequestFailedError(f"cannot start {name}: {path}: not executable", errno.EACCES)


def spawn(
    name: str,
    argv: Sequence[str],
    fds: Mapping[int, int],
    environment: Mapping[str, str] | None,
    record: Callable[[int, int], None],
    *,
    gate: int | None = None,
    code: bytes = b"",
    supervisor: ChildFilterSupervisor | None = None,
    root: Plan | None = None,
    fork: Callable[[], int] = os.fork,
    network: int | None = None,
    enter: Callable[[], None] | None = None,
    outlives: bool = False,
) -> int:
    """Start a child and return its pid once it runs its program, or waits at its gate.

    fds: its descriptors by number, of ours. record(pid, start time) is called when the process exists and
    before it runs anything. gate: the number of a descriptor from which it reads first: it runs its program
    when it reads a byte, without that descriptor, and exits at the end of file. code: the seccomp program
    under which it does all of this, if any. supervisor: answers for that program, where it asks. root: what
    it is confined to, before anything else is done to it. fork: makes the process, in a PID namespace
    perhaps. network: the network namespace in which it runs, by a descriptor. enter: what else it does to be
    where it runs; may raise OSError. outlives: whether it is not killed when this process ends.

    Raises:
        RequestFailedError: the program cannot be run; nothing is left of the child.
        OSError: there is no memory or no process to be had, or `record` failed.
    """
    check_executable(name, argv[0])
    environment = {"PATH": PATH} if environment is None else environment
    install = _installer(code, supervised=supervisor is not None)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = fork()
    except OSError as error:
        for fd in (go_read, go_write, report_read, report_write):
            os.close(fd)
        raise _failure(name, argv[0], error) from None
    if pid == 0:
        os.close(go_write)
        _become(argv, fds, environment, root, go_read, report_write, install, gate, network, enter, outlives)
    os.close(go_read)
    os.close(report_write)
    try:
        record(pid, processes.start_time(pid))
        os.write(go_write, GO)
        _follow(name, argv[0], pid, go_write, report_read, supervisor)
    except BaseException:
        if supervisor is not None:
            supervisor.close()
        os.kill(pid, signal.SIGKILL)  # it may wait for an answer that nobody gives
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(go_write)
        os.close(report_read)
    return pid


def _installer(code: bytes, *, supervised: bool) -> Callable[[], int | None] | None:
    """What puts a seccomp program on the calling thread, loaded before the fork; None without one."""
    if not code:
        return None
    from kata_hypervisor.seccomp import filter as kernel

    return partial(kernel.install, code, all_threads=False, listener=supervised)


def _follow(
    name: str, path: str, pid: int, go: int, report: int, supervisor: ChildFilterSupervisor | None
) -> None:
    """Read what the child reports until it runs, or waits at its gate. Raises RequestFailedError."""
    waiter = select.poll()
    waiter.register(report, select.POLLIN)
    while True:
        for fd, event in waiter.poll():
            if fd == report:
                kind, _, rest = os.read(report, 4096).partition(b" ")
                if not kind:
                    return
                if kind == FAILED:
                    number = int(rest)
                    raise _failure(name, path, OSError(number, os.strerror(number)))
                if kind == UNCONFINED:
                    raise RequestFailedError(f"cannot start {name}: {rest.decode(errors='replace')}")
                if kind == USERS:
                    _map_users(name, pid)
                    os.write(go, GO)
                    continue
                assert supervisor is not None
                supervisor.take_listener(_take(name, pid, int(rest)))
                waiter.register(supervisor.listener, select.POLLIN)
                os.write(go, GO)
            elif not event & select.POLLIN:
                waiter.unregister(fd)  # it has exited, which the end of the report shows
            elif supervisor is not None and (sentence := supervisor.answer()) is not None:
                raise RequestFailedError(f"cannot start {name}: {sentence}")


def _map_users(name: str, pid: int) -> None:
    try:
        confined_child.map_users(pid)
    except OSError as error:
        raise RequestFailedError(
            f"cannot start {name}: the users of its namespace cannot be mapped: {error.strerror}",
            error.errno or 0,
        ) from None


def _take(name: str, pid: int, listener: int) -> int:
    try:
        return syscalls.take_descriptor(pid, listener)
    except OSError as error:
        raise RequestFailedError(
            f"cannot start {name}: cannot take over the listener of its filter: pidfd_getfd: "
            f"{error.strerror}; Linux 5.6 or later is needed, and kernel.yama.ptrace_scope below 3",
            error.errno or 0,
        ) from None


def _failure(name: str, path: str, error: OSError) -> RequestFailedError:
    return RequestFailedError(f"cannot start {name}: {path}: {error.strerror}", error.errno or 0)


def _become(
    argv: Sequence[str],
    fds: Mapping[int, int],
    environment: Mapping[str, str],
    root: Plan | None,
    go: int,
    report: int,
    install: Callable[[], int | None] | None,
    gate: int | None,
    network: int | None,
    enter: Callable[[], None] | None,
    outlives: bool,
) -> NoReturn:
    """The child's side: never returns, and never raises into the broker's own code."""
    try:
        if not outlives:
            syscalls.die_with_parent(signal.SIGKILL)
        if os.read(go, 1) != GO or _is_orphan(go):
            os._exit(NOT_RUN)
        os.setsid()
        if network is not None:
            syscalls.enter_network(network)
        if enter is not None:
            enter()
        os.chdir("/")
        go, report = _place(fds, go, report)
        for number in signal.valid_signals():
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if root is not None:
            _confine(root, go, report, network=network is None)
        if install is not None:
            _install_filter(install, go, report)
        if gate is not None:
            os.close(go)
            os.close(report)
            report = 2  # whoever has the other end of the gate follows it
            if not os.read(gate, 1):
                os._exit(NOT_RUN)
            os.close(gate)
        os.execve(argv[0], list(argv), dict(environment))
    except OSError as error:
        if report == 2:
            os.write(report, f"cannot start {argv[0]}: {error.strerror}\n".encode())
        else:
            os.write(report, b"%s %d" % (FAILED, error.errno or errno.EIO))
    finally:
        os._exit(NOT_RUN)


def _is_orphan(go: int) -> bool:
    """Whether the parent exited before PR_SET_PDEATHSIG was set: it has the other end until we run."""
    waiter = select.poll()
    waiter.register(go, 0)  # a hang-up is always reported
    return bool(waiter.poll(0))


def _confine(root: Plan, go: int, report: int, *, network: bool) -> None:
    """Enter the root and become the pod's user, or say why not and exit."""

    def map_users() -> None:
        os.write(report, USERS)
        if os.read(go, 1) != GO:
            os._exit(NOT_RUN)

    try:
        confined_child.enter(root, network=network, map_users=map_users)
    except confined_child.StepFailedError as error:
        os.write(report, b"%s %s" % (UNCONFINED, str(error).encode()[:2000]))
        os._exit(NOT_RUN)
    syscalls.die_with_parent(signal.SIGKILL)  # which a change of user resets
    if _is_orphan(go):
        os._exit(NOT_RUN)


def _install_filter(install: Callable[[], int | None], go: int, report: int) -> None:
    """Put on the filter. Where it asks, wait until the parent has its listener: who answers otherwise?"""
    from kata_hypervisor.errors import SealError

    try:
        listener = install()
    except SealError as error:
        os.write(report, b"%s %s" % (UNCONFINED, str(error).encode()[:2000]))
        os._exit(NOT_RUN)
    if listener is None:
        return
    os.write(report, b"%s %d" % (LISTENER, listener))
    if os.read(go, 1) != GO:
        os._exit(NOT_RUN)
    os.close(listener)


def _place(fds: Mapping[int, int], *kept: int) -> list[int]:
    """Move the descriptors to their numbers and leave no other open; return where the kept ones went.

    They, and no others beyond the program's own, are there until it runs.
    """
    floor = max(max(fds, default=2) + 1, 3)
    # Copied above all targets first: one's target may be another's source.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor) for fd in kept]
    sources = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, floor) for target, source in fds.items()}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in (0, 1, 2):
        os.dup2(sources.get(target, null), target, inheritable=True)
    for target, source in sources.items():
        os.dup2(source, target, inheritable=True)
    # A child that waits holds nothing of the broker's: not its channel, and no listener.
    syscalls.close_all_but({0, 1, 2, *fds, *moved})
    return moved
