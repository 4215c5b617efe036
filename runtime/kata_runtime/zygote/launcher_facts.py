"""What the process is that asks for a shim: a zygote's child must be what its own fork would have been.

Some of what a process inherits a child can take over from the launcher. The rest has to be the same in the
zygote, or the launcher forks its shim itself.
Sources: fork(2), proc_pid_status(5), proc_pid_attr(5), namespaces(7).
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time

from kata_runtime import syscalls
from kata_runtime.broker import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SAME_STATUS = (
    *("Uid", "Gid", "Groups"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("Speculation_Store_Bypass", "SpeculationIndirectBranch", "THP_enabled"),
)
"""Lines of /proc/PID/status that have to be the same."""

SAME_FILES = ("attr/current", "personality", "loginuid", "sessionid", "coredump_filter", "timerslack_ns")
"""Files of /proc/PID that have to be the same, where the kernel has them."""

AT_START = (
    *("LD_", "GLIBC_TUNABLES=", "MALLOC_", "OPENSSL_CONF=", "PROMETHEUS_", "PYDANTIC_"),
    *("PROTOCOL_BUFFERS_", "TEMPORARILY_DISABLE_PROTOBUF_"),
)
"""Variables, by the beginning of NAME=, that libraries read when they are loaded: the same in both. The
encoding of the locale is a part of the installation's name."""

_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class Launcher:
    """A launcher, while it waits for its answer; a context. pid: its process. handle: a pidfd of it, which is
    closed at the context's end."""

    def __init__(self, pid: int, handle: int) -> None:
        self._pid = pid
        self._handle = handle
        self._base = f"/proc/{pid}"

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def find_difference(self, environment: list[bytes]) -> str | None:
        """Say in what it differs from this process that a child could not take over.

        Raises OSError: it has exited, or is hidden from this process.
        """
        for name, theirs, ours in self._pairs():
            if theirs != ours:
                return f"{name} of the launcher is {theirs}, of the zygote {ours}"
        if names := _read_at_start(environment) ^ _read_at_start(_own_environment()):
            return f"the launcher's environment differs in {', '.join(sorted(names))}"
        return None

    def _pairs(self) -> Iterator[tuple[str, object, object]]:
        own = "/proc/self"
        for name in sorted(os.listdir(f"{own}/ns")):
            yield (
                f"the namespace {name}",
                os.readlink(f"{self._base}/ns/{name}"),
                os.readlink(f"{own}/ns/{name}"),
            )
        yield "the root directory", _root(self._base), _root(own)
        theirs, ours = _status(self._base), _status(own)
        for name in SAME_STATUS:
            yield f"{name} in /proc/PID/status", theirs.get(name), ours.get(name)
        for name in SAME_FILES:
            yield f"/proc/PID/{name}", _text(f"{self._base}/{name}"), _text(f"{own}/{name}")

    def take_over(self) -> None:
        """Be in this process what a fork of the launcher would be.

        Raises:
            OSError, ValueError: something could not be taken over, or the launcher has exited meanwhile.
        """
        pid = self._pid
        theirs, own = cgroups.read_membership(self._base), cgroups.read_membership()
        for hierarchy in cgroups.hierarchies() if theirs != own else ():
            _enter(cgroups.current(hierarchy, theirs), cgroups.current(hierarchy, own))
        for limit in _LIMITS:
            resource.setrlimit(limit, resource.prlimit(pid, limit))
        _write(f"{self._base}/oom_score_adj", "/proc/self/oom_score_adj")
        status = _status(self._base)
        os.umask(int(status["Umask"], 8))
        _take_signals(int(status["SigBlk"], 16), int(status["SigIgn"], 16))
        os.sched_setaffinity(0, os.sched_getaffinity(pid))
        os.sched_setscheduler(0, os.sched_getscheduler(pid), os.sched_getparam(pid))
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, pid))
        syscalls.set_io_priority(syscalls.io_priority(pid))
        if self._has_exited():
            raise ProcessLookupError(f"the launcher, process {pid}, has exited")

    def _has_exited(self) -> bool:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(0))


def take_environment(environment: list[bytes]) -> None:
    """Have this environment and no other, for what Python and the C library read, and for children."""
    os.environb.clear()
    for pair in environment:
        name, _, value = pair.partition(b"=")
        os.environb[name] = value
    time.tzset()


def _own_environment() -> list[bytes]:
    return [name + b"=" + value for name, value in os.environb.items()]


def _read_at_start(environment: list[bytes]) -> set[str]:
    """Those of an environment's variables that libraries read when they are loaded."""
    return {text for pair in environment if (text := os.fsdecode(pair)).startswith(AT_START)}


def _enter(directory: str, own: str) -> None:
    if directory == own:
        return
    with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
        file.write("0")


def _take_signals(blocked: int, ignored: int) -> None:
    """The mask of blocked signals, and which are ignored; both with a bit for each signal."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        is_ignored = signal.getsignal(number) is signal.SIG_IGN
        if bool(ignored >> (number - 1) & 1) != is_ignored:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default if is_ignored else signal.SIG_IGN)
    signal.pthread_sigmask(
        signal.SIG_SETMASK, {number for number in signal.valid_signals() if blocked >> (number - 1) & 1}
    )


def _root(base: str) -> tuple[int, int]:
    found = os.stat(f"{base}/root/.")
    return found.st_dev, found.st_ino


def _status(base: str) -> dict[str, str]:
    with open(f"{base}/status", encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _text(path: str) -> str | None:
    """A file's text; None where this kernel has no such file, or no answer in it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        return os.strerror(error.errno or 0)


def _write(source: str, target: str) -> None:
    """Copy the short text of a file of /proc."""
    with open(source, encoding="ascii") as file, open(target, "w", encoding="ascii") as to:
        to.write(file.read())
