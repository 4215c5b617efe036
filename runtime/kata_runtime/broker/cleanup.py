"""Cleanup: undoes a sandbox from its rollback journal, in the broker or, when that is dead, in `shim delete`.

Processes are killed first, wherever they are in the journal, so that nothing holds a mount. Then the entries
are undone from the last to the first. Whoever undoes holds the lock on the sandbox's directory. What is
removed is removed by its recorded name, one by one, and never behind a mount: a file of the user's cannot be
reached from here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from kata_runtime.broker import cgroups, claims, cpuset, mounts, pod_identity, processes
from kata_runtime.broker.errors import BrokerError, refusal
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.rollback import NAME, RollbackJournal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kata_runtime.broker.rollback import Entry
    from kata_runtime.identity import SandboxIdentity

LOCK_TIMEOUT = 10.0
"""How long to wait for a broker that works on the same directory, in seconds."""
CGROUPS = ("cgroup", "rmgroup")
"""Kinds of entries that are about the sandbox's cgroup."""
_PAUSE = 0.01
# What comes of an entry that holds something else than it should.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def clean_up(identity: SandboxIdentity, timeout: float = LOCK_TIMEOUT) -> list[str]:
    """Undo whatever is left of a sandbox, from any process and in any state; idempotent.

    A shim that still runs is killed first: then its broker undoes everything itself, from within its own
    mount namespace. Only when that broker is dead, or does not finish in time, is it done here.

    Returns one line for each thing that could not be undone; the journal is then kept for another attempt.
    """
    try:
        directory = os.open(identity.directory, _DIRECTORY)
    except FileNotFoundError:
        unlink(identity.socket)
        return []
    try:
        if not lock(directory, 0):
            _end(RollbackJournal.load(directory), "shim")
            if not lock(directory, timeout):
                _end(RollbackJournal.load(directory), "broker")
                if not lock(directory, processes.GRACE):
                    return [f"{identity.directory} is locked by a process that does not exit"]
        return roll_back_all(directory, identity.directory)
    finally:
        os.close(directory)


def sweep(root: str) -> list[str]:
    """Undo every sandbox below the directory of all sandboxes that is nobody's.

    That is one whose shim and broker are dead and whose bundle does not exist: containerd runs `shim delete`
    for any other. Returns one line for each thing that could not be undone.
    """
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    left = []
    for name in names:
        path = os.path.join(root, name)
        try:
            directory = os.open(path, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            if lock(directory, 0) and _is_nobodys(directory):
                left += roll_back_all(directory, path)
        finally:
            os.close(directory)
    return left


def _is_nobodys(directory: int) -> bool:
    """Whether a sandbox's shim and bundle are gone; its broker is dead, for we have its lock."""
    journal = RollbackJournal.load(directory)
    if journal is None or (shim := journal.process("shim")) is None:
        return False  # a broker is just making it, or it is no sandbox's
    bundle = journal.path("bundle")
    return bool(bundle) and not processes.is_alive(*shim) and not os.path.lexists(bundle)


def lock(directory: int, timeout: float) -> bool:
    """Take the lock that says who works on a sandbox; it goes with the process. False when it is taken."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def roll_back_all(directory: int, path: str) -> list[str]:
    """Undo a sandbox whose broker is dead, and remove its directory; the caller has locked it."""
    journal = RollbackJournal.load(directory)
    left = roll_back_dead(journal, path) if journal else []
    if journal:
        unlink(journal.path("socket"))
    return left or clear(directory, path)


def roll_back_dead(journal: RollbackJournal, path: str) -> list[str]:
    """Undo the journal that a dead broker left; its directory and its files stay. As `clean_up`."""
    for role in ("shim", "broker"):
        _end(journal, role)
    bundle = journal.path("bundle")
    shared = os.path.join(path, "shared")
    scope = PathScope(shared, _hold(shared), bundle, _hold(bundle))
    try:
        mounted = journal.header.get("namespace") == mount_namespace()
        left = roll_back(journal, scope, {os.getpid()}, mounted=mounted)
    finally:
        scope.close()
    if any(entry.get("undo") == "poststop" for entry in journal.entries.values()):
        from kata_runtime.broker import hooks  # as above

        hooks.run_left(journal)
    return left


def roll_back(
    journal: RollbackJournal, scope: PathScope, spared: Collection[int], *, mounted: bool
) -> list[str]:
    """Undo every entry of a journal.

    spared: processes that must survive: the one that cleans up, and a shim that still runs. mounted: whether
    we are in the mount namespace of the entries; in another one their mounts do not exist, and end with
    their namespace.

    Returns one line for each entry that could not be undone.
    """
    left = []
    if journal.unreadable:
        left.append(f"{journal.unreadable} lines of the rollback journal are unreadable")
    entries = list(reversed(journal.entries.values()))

    def attempt(action: Callable[[Entry], None]) -> None:
        for entry in entries:
            try:
                action(entry)
            except (OSError, BrokerError, *_DAMAGED) as error:
                left.append(f"cannot undo {_describe(entry)}: {refusal(error) or error}")

    attempt(lambda entry: _end_processes(entry, spared))
    attempt(lambda entry: _undo(entry, scope, mounted))
    return left


def end_cgroups(entries: Sequence[Entry]) -> None:
    """Undo entries of CGROUPS, but for this process, which is moved out. Raises OSError."""
    for entry in reversed(entries):
        _end_processes(entry, {os.getpid()})
        if entry["undo"] == "cgroup":
            cgroups.remove(entry["path"])
        else:
            cgroups.remove_parent(entry["path"])


def _end_processes(entry: Entry, spared: Collection[int]) -> None:
    match entry.get("undo"):
        case "process":
            identity = entry["pid"], entry["start"]
            patience = entry.get("patience")
            if not (processes.retire(*identity, patience) if patience else processes.end(*identity)):
                raise OSError(errno.EBUSY, "it was killed and does not exit")
        case "cgroup":
            if pids := cgroups.empty(entry["path"], entry["origin"], spared):
                raise OSError(errno.EBUSY, f"process {pids[0]} in it was killed and does not exit")


def _undo(entry: Entry, scope: PathScope, mounted: bool) -> None:
    match entry.get("undo"):
        case "process" | "poststop":
            return  # ended before, and to be run in the end
        case "cgroup":
            cgroups.remove(entry["path"])
        case "rmgroup":
            cgroups.remove_parent(entry["path"])
        case cpuset.UNDO:
            cpuset.release(entry["path"], entry["origin"])
        case "unmount":
            if mounted:
                _unmount(entry["path"], scope)
        case "remove":
            _remove(entry["path"], scope)
        case pod_identity.UNDO | claims.UNDO:
            claims.release(entry["path"], entry["key"])
        case "network":
            from kata_runtime.broker import pod_network  # which cleanups of pods without one do not pay for

            pod_network.detach(entry)
        case kind:
            raise BrokerError(f"this version of the runtime knows no such entry: {kind!r}")


def _unmount(path: str, scope: PathScope) -> None:
    try:
        with scope.reach(path) as place:
            mounts.unmount(place)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it is not mounted (any more)
            raise


def _remove(path: str, scope: PathScope) -> None:
    try:
        with scope.reach(path) as place:
            place.remove()
    except FileNotFoundError:
        return


def _describe(entry: Entry) -> str:
    what = entry.get("path") or f"{entry.get('name')} ({entry.get('pid')})"
    return f"{entry.get('undo')} {what}"


def clear(directory: int, path: str) -> list[str]:
    """Remove the sandbox's own directory with the files and sockets in it, one level deep. As `clean_up`.

    It is private to root and no guest sees it. What is in a directory below it is not ours to remove.
    """
    if os.fstat(directory).st_nlink == 0:
        return []  # somebody else removed it; what has its name now is another sandbox's
    left: list[str] = []
    for name in sorted(os.listdir(directory), key=lambda name: name == NAME):
        if left and name == NAME:
            break  # for another attempt
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"cannot remove {path}/{name}: {error.strerror}")
    if not left:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            left.append(f"cannot remove {path}: {error.strerror}")
    return left


def mount_namespace() -> int:
    """The inode of our mount namespace."""
    return os.stat("/proc/self/ns/mnt").st_ino


def _end(journal: RollbackJournal | None, role: str) -> None:
    """Kill the shim or the broker that a journal names, unless it is us."""
    process = journal.process(role) if journal else None
    if process and process[0] != os.getpid():
        processes.end(*process)


def _hold(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) if path else -1
    except (FileNotFoundError, NotADirectoryError):
        return -1


def unlink(path: str) -> None:
    """Remove a file that may be gone already; nothing when the path is empty."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
