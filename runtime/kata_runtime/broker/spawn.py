"""Starting a child: fork, put everything in its place, exec; the parent tells what fails in the child."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat

from kata_runtime.broker import processes, syscalls
from kata_runtime.broker.errors import RequestFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

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
) -> int:
    """Start a child and return its pid once it runs its program.

    fds: its descriptors by number, of ours. record(pid, start time) is called when the process exists and
    before it runs anything.

    Raises:
        RequestFailedError: the program cannot be run; nothing is left of the child.
        OSError: there is no memory or no process to be had, or `record` failed.
    """
    check_executable(name, argv[0])
    environment = {"PATH": PATH} if environment is None else environment
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        for fd in (go_read, go_write, error_read, error_write):
            os.close(fd)
        raise _failure(name, argv[0], error) from None
    if pid == 0:
        os.close(go_write)
        _become(argv, fds, environment, parent, go_read, error_write)
    os.close(go_read)
    os.close(error_write)
    try:
        record(pid, processes.start_time(pid))
        os.write(go_write, b"g")
    except BaseException:
        os.close(go_write)
        os.close(error_read)
        os.waitpid(pid, 0)  # it saw the end of the pipe and left
        raise
    os.close(go_write)
    with open(error_read, "rb") as pipe:
        failure = pipe.read(16)
    if failure:
        os.waitpid(pid, 0)
        number = int(failure)
        raise _failure(name, argv[0], OSError(number, os.strerror(number)))
    return pid


def _failure(name: str, path: str, error: OSError) -> RequestFailedError:
    return RequestFailedError(f"cannot start {name}: {path}: {error.strerror}", error.errno or 0)


def _become(
    argv: Sequence[str],
    fds: Mapping[int, int],
    environment: Mapping[str, str],
    parent: int,
    go: int,
    report: int,
) -> NoReturn:
    """The child's side: never returns, and never raises into the broker's own code."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent or os.read(go, 1) != b"g":
            os._exit(127)
        os.setsid()
        os.chdir("/")
        report = _place(fds, report)
        for number in signal.valid_signals():
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execve(argv[0], list(argv), dict(environment))
    except OSError as error:
        os.write(report, str(error.errno or errno.EIO).encode())
    finally:
        os._exit(127)


def _place(fds: Mapping[int, int], report: int) -> int:
    """Move the descriptors to their numbers and leave no other to the program; return where `report` went."""
    floor = max(fds, default=2) + 1
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, max(floor, 3))
    # Copied above all targets first: one's target may be another's source.
    sources = {
        target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, max(floor, 3)) for target, source in fds.items()
    }
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in (0, 1, 2):
        os.dup2(sources.get(target, null), target, inheritable=True)
    syscalls.close_on_exec_from(3)
    for target, source in sources.items():
        os.dup2(source, target, inheritable=True)
    return report
