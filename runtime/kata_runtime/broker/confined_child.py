"""The root, namespaces and user of a child that may have nothing of the host: planned, then made before exec.

`plan` decides, in the broker, what the child's root directory holds; `enter` makes it, in the child, between
fork and exec. The order in `enter` matters: what needs a privilege comes before it is given up, and the last
step takes all of them. The child's PID namespace is the pod's (`pod_identity`).

A link on the way to a path is made anew in the root, so that every path leads where it does on the host.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    # The target of the link at a path, None where there is no link.
    ReadLink = Callable[[str], str | None]

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where shared libraries, QEMU's modules and script interpreters' own files are; shown where they exist."""

HOSTNAME = b"sandbox"
MAX_LINKS = 40
"""Links on the way to one path, as the kernel's own limit (path_resolution(7))."""

_ROOT_OPTIONS = "mode=0755,size=1m,nr_inodes=4096"
_DEVICE_OPTIONS = "mode=0755,size=64k,nr_inodes=64"
_PROC_OPTIONS = "subset=pid"
_HOLD = os.O_PATH | os.O_CLOEXEC


class StepFailedError(Exception):
    """A child could not be confined; a sentence."""


class Plan:
    """A child's root directory.

    links: targets of links by their path. shown: for each path of the host, whether it is a directory and
    whether programs in it may be executed. devices: device numbers by path. user: its uid, and gid.
    """

    __slots__ = ("devices", "links", "open_files", "place", "proc", "shown", "user")

    def __init__(self, user: int, place: str, *, proc: bool, open_files: int) -> None:
        self.user = user
        self.place = place
        self.proc = proc
        self.open_files = open_files
        self.links: dict[str, str] = {}
        self.shown: dict[str, tuple[bool, bool]] = {}
        self.devices: dict[str, int] = {}


def resolve(path: str, read_link: ReadLink) -> tuple[str, dict[str, str]]:
    """The path without links, and the links on the way by their own paths. Raises OSError: too many."""
    links: dict[str, str] = {}
    done, names, followed = "", path.split("/"), 0
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done).rstrip("/")
            continue
        here = f"{done}/{name}"
        target = read_link(here)
        if target is None:
            done = here
            continue
        followed += 1
        if followed > MAX_LINKS:
            raise OSError(errno.ELOOP, f"it leads through more than {MAX_LINKS} links", path)
        links[here] = target
        names = target.split("/") + names
        if target.startswith("/"):
            done = ""
    return done or "/", links


def plan(name: str, program: str, fields: Mapping[str, Any], user: int, place: str) -> Plan:
    """Plan the root of a child.

    program: its path. fields: those of a `kata_hypervisor.privileges.Privileges`. place: an existing
    directory on which the root is made, in a namespace of the child's.

    Raises:
        RequestFailedError: a file is missing, or the user could not read it; says what to do.
    """
    made = Plan(user, place, proc=fields["proc"], open_files=fields["open_files"])
    for path in (*LIBRARIES, *fields["data"]):
        if os.path.exists(path):
            _show(made, name, path, execute=path in LIBRARIES or os.path.basename(path).startswith("lib"))
    _show(made, name, program, execute=True)
    if interpreter := _interpreter(program):
        _show(made, name, interpreter, execute=True)
    for path in fields["files"]:
        _show(made, name, path, execute=False)
    for path in fields["devices"]:
        mode = _stat(name, path)
        if not stat.S_ISCHR(mode.st_mode):
            raise RequestFailedError(f"cannot start {name}: {path} is not a character device")
        made.devices[path] = mode.st_rdev
    directories = [f"{path}/" for path, (directory, _) in made.shown.items() if directory]
    for entries in (made.links, made.shown):
        for path in [path for path in entries if any(path.startswith(above) for above in directories)]:
            del entries[path]  # it is seen there already
    return made


def _show(made: Plan, name: str, path: str, *, execute: bool) -> None:
    real, links = resolve(path, _read_link)
    found = _stat(name, real)
    directory = stat.S_ISDIR(found.st_mode)
    needed = 0o4 | (0o1 if directory or (execute and not _is_data(real)) else 0)
    if real == "/" or not (directory or stat.S_ISREG(found.st_mode)):
        raise RequestFailedError(f"cannot start {name}: {path} is neither a file nor a directory of its own")
    if found.st_mode & needed != needed:
        letters = "rx" if needed & 0o1 else "r"
        raise RequestFailedError(
            f"cannot start {name}: {real} has mode {stat.S_IMODE(found.st_mode):04o}, and {name} runs as "
            f"user {made.user} of its pod, which cannot read it: chmod o+{letters} {real}"
        )
    made.links.update(links)
    made.shown[real] = (directory, execute or made.shown.get(real, (False, False))[1])


def _is_data(path: str) -> bool:
    return path == "/etc/ld.so.cache"


def _stat(name: str, path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise RequestFailedError(f"cannot start {name}: {path}: {error.strerror}", error.errno or 0) from None


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _interpreter(program: str) -> str | None:
    """The interpreter of a script, from its first line."""
    with open(program, "rb") as file:
        first = file.read(256).partition(b"\n")[0]
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else None


# -- in the child ------------------------------------------------------------------------------------------


def enter(plan: Plan, *, network: bool = True) -> None:
    """Make the root, enter it, and become the user; everything else is given up. Raises StepFailedError.

    network: false for a child that was moved into the pod's network namespace.
    """
    _step("enter its namespaces", lambda: syscalls.unshare_child(network=network))
    _step("make its root directory", _make_root, plan)
    _step("name its host", socket.sethostname, HOSTNAME)
    _step("limit its resources", _limit, plan.open_files)
    _step(f"become user {plan.user}", syscalls.become_user, plan.user)


def enter_nothing(place: str, user: int) -> None:
    """As `enter`, with an empty root. Raises StepFailedError."""
    enter(Plan(user, place, proc=False, open_files=16))


def _step(what: str, action: Callable[..., object], *arguments: object) -> None:
    try:
        action(*arguments)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StepFailedError(f"it could not {what}: {where}{error.strerror}") from None


def _make_root(plan: Plan) -> None:
    trees = {path: _tree(path) for path in plan.shown}  # before the root hides what is below its place
    root = plan.place
    syscalls.mount("kata-root", root, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, _ROOT_OPTIONS)
    os.umask(0o022)
    for path, target in plan.links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, (directory, execute) in plan.shown.items():
        _attach(trees[path], root + path, directory=directory, execute=execute)
    _make_devices(root, plan)
    if plan.proc:
        os.makedirs(root + "/proc", exist_ok=True)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", root + "/proc", "proc", flags, _PROC_OPTIONS)
    _freeze(root)
    os.chdir(root)
    syscalls.pivot_root()
    os.chdir("/")


def _tree(path: str) -> int:
    place = os.open(path, _HOLD | os.O_NOFOLLOW)
    try:
        return syscalls.clone_tree(place, recursive=False)
    finally:
        os.close(place)


def _attach(tree: int, target: str, *, directory: bool, execute: bool) -> None:
    if directory:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    attributes |= 0 if execute else syscalls.MOUNT_ATTR_NOEXEC
    place = os.open(target, _HOLD | os.O_NOFOLLOW)
    syscalls.set_attributes(tree, attributes, recursive=False, propagation=syscalls.MS_PRIVATE)
    syscalls.attach_tree(tree, place)
    os.close(place)
    os.close(tree)


def _make_devices(root: str, plan: Plan) -> None:
    """A file system of their own, because devices work nowhere else in the root."""
    if not plan.devices:
        return
    os.mkdir(root + "/dev")
    flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    syscalls.mount("kata-devices", root + "/dev", "tmpfs", flags, _DEVICE_OPTIONS)
    for path, number in plan.devices.items():
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mknod(target, stat.S_IFCHR | 0o600, number)
        os.chown(target, plan.user, plan.user)
    _freeze(root + "/dev")


def _freeze(path: str) -> None:
    place = os.open(path, _HOLD)
    syscalls.set_attributes(place, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(place)


def _limit(open_files: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    number = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
