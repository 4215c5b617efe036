"""The root, namespaces and user of a child that may have nothing of the host: planned, then made before exec.

`plan` decides, in the broker, what the child's root directory holds; `enter` makes it, in the child, between
fork and exec. The order in `enter` matters: what needs a privilege comes before it is given up, and the last
step takes all of them. The child's PID namespace is the pod's (`pod_identity`).

A child that serves files gets a user namespace as the last of its namespaces: it owns none of the others, and
no capability that it keeps holds for them. Every user has the same number in there (user_namespaces(7)).

A link on the way to a path is made anew in the root, so that every path leads where it does on the host.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from kata_runtime.broker.vmm_directory import VmmDirectory

    # The target of the link at a path, None where there is no link.
    ReadLink = Callable[[str], str | None]

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where shared libraries, QEMU's modules and script interpreters' own files are; shown where they exist."""

HOSTNAME = b"sandbox"
MAX_LINKS = 40
"""Links on the way to one path, as the kernel's own limit (path_resolution(7))."""

JAILER_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "SETGID": 6,
    "SETUID": 7,
    "SYS_CHROOT": 18,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
}
"""What a jailer makes a root and becomes a user with (linux/capability.h); with that it gives them up."""

SERVER_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "SYS_CHROOT": 18,
    "SETFCAP": 31,
}
"""What a child that serves files keeps, by its number in capabilities(7). It gives up SETPCAP and SYS_CHROOT
itself, when it has chosen the shared directory for its root."""

ALL_USERS = b"0 0 4294967295"
"""Every uid or gid but the invalid one, as itself: a line of /proc/PID/uid_map."""

_ROOT_OPTIONS = "mode=0755,size=1m,nr_inodes=4096"
_DEVICE_OPTIONS = "mode=0755,size=64k,nr_inodes=64"
_PROC_OPTIONS = "subset=pid"
_HIDDEN = (
    *("kpagecount", "kpageflags", "kpagecgroup", "pagetypeinfo", "slabinfo", "vmallocinfo", "timer_list"),
    *("keys", "key-users", "sched_debug"),
)
"""Files of the whole of /proc that say of the host's memory and of other pods what root may read without any
capability; a child that serves files is root."""
_NOTHING = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_HOLD = os.O_PATH | os.O_CLOEXEC
_NO_PROGRAMS = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


class StepFailedError(Exception):
    """A child could not be confined; a sentence."""


class Plan:
    """A child's root directory.

    links: targets of links by their path. shown: for each path of the host, whether it is a directory and
    whether programs in it may be executed. own: directories that it may write. disks: one in which disks
    appear later, or "". devices: type, mode and device number by path. open_files, file_size: its limits,
    None for none. user: its uid, and gid. serves: the directory that it serves, or None. jailer: whether it
    makes its root and becomes the user itself.
    """

    __slots__ = (
        *("devices", "disks", "file_size", "jailer", "links", "open_files", "own", "place", "proc"),
        *("serves", "shown", "user"),
    )

    def __init__(
        self,
        user: int,
        place: str,
        *,
        proc: bool,
        open_files: int,
        file_size: int | None = 0,
        serves: str | None = None,
    ) -> None:
        self.user = user
        self.place = place
        self.proc = proc
        self.open_files = open_files
        self.file_size = file_size
        self.serves = serves
        self.links: dict[str, str] = {}
        self.shown: dict[str, tuple[bool, bool]] = {}
        self.own: list[str] = []
        self.disks = ""
        self.jailer = False
        self.devices: dict[str, tuple[int, int]] = {}


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


def plan(
    name: str,
    program: str,
    fields: Mapping[str, Any],
    user: int,
    place: str,
    directory: VmmDirectory | None = None,
) -> Plan:
    """Plan the root of a child.

    program: its path. fields: those of a `kata_hypervisor.privileges.Privileges`. place: an existing
    directory on which the root is made, in a namespace of the child's. directory: of the sandbox's VMM, which
    is made where the child is to have it.

    Raises:
        RequestFailedError: a file is missing, or the user could not read it; says what to do.
        RequestRefusedError: the VMM's directory is another one.
    """
    made = Plan(
        user,
        place,
        proc=fields["proc"],
        open_files=_possible(fields["open_files"]),
        file_size=fields["file_size"],
        serves=fields["serves"],
    )
    if fields["jailer"]:
        made.jailer = True
        return made
    for path in (*LIBRARIES, *fields["data"]):
        if os.path.exists(path):
            _show(made, name, path, execute=path in LIBRARIES or os.path.basename(path).startswith("lib"))
    _show(made, name, program, execute=True)
    if interpreter := _interpreter(program):
        _show(made, name, interpreter, execute=True)
    for path in fields["files"]:
        _show(made, name, path, execute=False)
    for path in fields["devices"]:
        _add_device(made, name, path, stat.S_IFCHR, 0o600)
    for path, readonly in fields["disks"].items():
        _add_device(made, name, path, stat.S_IFBLK, 0o400 if readonly else 0o600)
    if fields["run_directory"] is not None:
        if directory is None or fields["run_directory"] != directory.path:
            raise RequestRefusedError(f"{fields['run_directory']} is not the directory of the sandbox's VMM")
        directory.make()
        made.own.append(directory.path)
        made.disks = directory.disks_path
    for path in fields["writable"]:
        _give(name, path, user)
        made.own.append(path)
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
    if made.serves is None and found.st_mode & needed != needed:
        letters = "rx" if needed & 0o1 else "r"
        raise RequestFailedError(
            f"cannot start {name}: {real} has mode {stat.S_IMODE(found.st_mode):04o}, and {name} runs as "
            f"user {made.user} of its pod, which cannot read it: chmod o+{letters} {real}"
        )
    made.links.update(links)
    made.shown[real] = (directory, execute or made.shown.get(real, (False, False))[1])


def _possible(open_files: int) -> int:
    """A limit of descriptors that the kernel lets root set."""
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        return min(open_files, int(file.read()))


def _add_device(made: Plan, name: str, path: str, kind: int, mode: int) -> None:
    found = _stat(name, path)
    if stat.S_IFMT(found.st_mode) != kind:
        what = "character" if kind == stat.S_IFCHR else "block"
        raise RequestFailedError(f"cannot start {name}: {path} is not a {what} device")
    made.devices[path] = (kind | mode, found.st_rdev)


def _give(name: str, path: str, user: int) -> None:
    """Make an empty directory the user's."""
    place = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.listdir(place):
            raise RequestFailedError(f"cannot start {name}: {path}, which it is to write into, is not empty")
        os.fchown(place, user, user)
    finally:
        os.close(place)


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
    command = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(command[0]) if command else None


# -- in the child ------------------------------------------------------------------------------------------


def enter(plan: Plan, *, network: bool = True, map_users: Callable[[], None] | None = None) -> None:
    """Make the root, enter it, and become the user; everything else is given up. Raises StepFailedError.

    network: false for a child that was moved into the pod's network namespace. map_users: has the parent give
    this process's new user namespace all users, and returns when it has; for a child that serves files.
    """
    receive = plan.serves is not None or plan.disks != ""
    _step("enter its namespaces", lambda: syscalls.unshare_child(network=network, receive=receive))
    if not plan.jailer:
        _step("make its root directory", _make_root, plan)
    _step("name its host", socket.sethostname, HOSTNAME)
    _step("limit its resources", _limit, plan.open_files, plan.file_size)
    if plan.serves is not None:
        assert map_users is not None
        _step("enter a user namespace (see user.max_user_namespaces)", syscalls.unshare_users)
        map_users()
        _step("give up capabilities", syscalls.become_server, SERVER_CAPABILITIES.values())
    elif plan.jailer:
        _step("give up capabilities", syscalls.gain_nothing, JAILER_CAPABILITIES.values())
    else:
        _step(f"become user {plan.user}", syscalls.become_user, plan.user)


def enter_nothing(place: str, user: int, *, network: bool) -> None:
    """As `enter`, with an empty root. Raises StepFailedError."""
    enter(Plan(user, place, proc=False, open_files=16), network=network)


def _step(what: str, action: Callable[..., object], *arguments: object) -> None:
    try:
        action(*arguments)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StepFailedError(f"it could not {what}: {where}{error.strerror}") from None


def _make_root(plan: Plan) -> None:
    # Before the root hides what is below its place.
    trees = {path: _tree(path) for path in (*plan.shown, *plan.own, *filter(None, [plan.disks]))}
    served = _tree(plan.serves, recursive=True) if plan.serves is not None else -1
    root = plan.place
    syscalls.mount("kata-root", root, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, _ROOT_OPTIONS)
    os.umask(0o022)
    for path, target in plan.links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, (directory, execute) in plan.shown.items():
        attributes = _READ_ONLY if execute else _READ_ONLY | syscalls.MOUNT_ATTR_NOEXEC
        _attach(trees[path], root + path, attributes, directory=directory)
    for path in plan.own:
        _attach(trees[path], root + path, _NO_PROGRAMS, directory=True)
    if plan.disks:
        attributes = _READ_ONLY | syscalls.MOUNT_ATTR_NOEXEC
        _attach(trees[plan.disks], root + plan.disks, attributes, directory=True, slave=True)
    if plan.serves is not None:
        _attach_served(served, root + plan.serves)
    _make_devices(root, plan)
    if plan.proc:
        os.makedirs(root + "/proc", exist_ok=True)
        # virtiofsd of QEMU ends where it cannot read /proc/sys/fs/file-max.
        options = "" if plan.serves is not None else _PROC_OPTIONS
        syscalls.mount("proc", root + "/proc", "proc", _NOTHING | syscalls.MS_RDONLY, options)
        if plan.serves is not None:
            _hide(root)
    _freeze(root)
    os.chdir(root)
    syscalls.pivot_root()
    os.chdir("/")


def _hide(root: str) -> None:
    """Put an empty file in the place of those of /proc that are not the business of a pod."""
    os.close(os.open(root + "/hidden", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0))
    for path in (f"{root}/proc/{name}" for name in _HIDDEN):
        if os.path.exists(path):
            place = os.open(path, _HOLD | os.O_NOFOLLOW)
            tree = _tree(root + "/hidden")
            syscalls.set_attributes(tree, _READ_ONLY, recursive=False, propagation=syscalls.MS_PRIVATE)
            syscalls.attach_tree(tree, place)
            os.close(place)
            os.close(tree)


def _tree(path: str, *, recursive: bool = False) -> int:
    place = os.open(path, _HOLD | os.O_NOFOLLOW)
    try:
        return syscalls.clone_tree(place, recursive=recursive)
    finally:
        os.close(place)


def _attach(tree: int, target: str, attributes: int, *, directory: bool, slave: bool = False) -> None:
    """Put a tree in its place. slave: what is mounted in its origin later appears in it too."""
    if directory:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    place = os.open(target, _HOLD | os.O_NOFOLLOW)
    propagation = syscalls.MS_SLAVE if slave else syscalls.MS_PRIVATE
    syscalls.set_attributes(tree, attributes, recursive=False, propagation=propagation)
    syscalls.attach_tree(tree, place)
    os.close(place)
    os.close(tree)


def _attach_served(tree: int, target: str) -> None:
    """Show a directory with what is mounted in it, as it is: it goes on receiving mounts."""
    os.makedirs(target, exist_ok=True)
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    syscalls.set_attributes(tree, attributes, recursive=True)
    place = os.open(target, _HOLD | os.O_NOFOLLOW)
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
    for path, (mode, number) in plan.devices.items():
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mknod(target, mode, number)
        os.chown(target, plan.user, plan.user)
    _freeze(root + "/dev")


def _freeze(path: str) -> None:
    place = os.open(path, _HOLD)
    syscalls.set_attributes(place, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(place)


def _limit(open_files: int, file_size: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    except ValueError:  # a broker without CAP_SYS_RESOURCE cannot raise what it was given
        highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


# -- in its parent -----------------------------------------------------------------------------------------


def map_users(pid: int) -> None:
    """Give the user namespace that a child has just made all users. Who makes one may map himself alone.

    Raises OSError.
    """
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
            file.write(ALL_USERS)
