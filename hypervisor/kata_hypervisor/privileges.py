"""What a driver's process may see and have on the host: its own root, user and namespaces; nothing else.

A process with `Privileges` runs as the user of its pod, without capabilities and with no_new_privs, in mount,
IPC, UTS, PID and network namespaces that are not the host's. Its root directory holds its program, the
directories of shared libraries, and what is listed here, all of it read-only. Everything else that it needs
is a descriptor. The broker does this between fork and exec.

One that serves files to the guest must read and write what belongs to any user. It is root in a user
namespace of its own, in which every user has the number that he has outside: so its few capabilities hold for
the files that it is shown, and for nothing else of the host. It owns none of its other namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NULL, RANDOM, KVM = Path("/dev/null"), Path("/dev/urandom"), Path("/dev/kvm")
TUN = Path("/dev/net/tun")
VHOST_NET = Path("/dev/vhost-net")


class Privileges:
    """What a process is shown.

    files: files of the host, which must be readable for everybody. data: directories and files that are shown
    where they exist: firmware and the like. devices: character devices, which get nodes that the process's
    user owns. disks: block devices likewise, by whether they can only be read. proc: whether it has /proc, of
    its own processes only. written: the numbers of those of its descriptors which it opens again through
    /proc, for writing: regular files and pipes, which become its user's. network: whether it is in the pod's
    network namespace, where there is one, and not in an empty one. open_files: its limit of descriptors.
    file_size: in bytes, how large a file may be that it makes or writes to, memory that is a file among them;
    None where nothing can be said of it, as of who serves files.

    serves: the sandbox's shared directory, where it serves that: it is shown with all that is mounted in it,
    also later, and with all of /proc, read-only. run_directory: that of `vmm_paths`, for its sockets, and
    with it that of its later disks. writable: empty directories of the host that become its user's, for what
    it saves.

    jailer: whether the program makes its root and becomes the user itself, and is shown all of the host until
    then: it gets the namespaces and limits only.
    """

    __slots__ = (
        *("data", "devices", "disks", "file_size", "files", "jailer", "network", "open_files", "proc"),
        *("run_directory", "serves", "writable", "written"),
    )

    def __init__(
        self,
        files: tuple[Path, ...] = (),
        data: tuple[Path, ...] = (),
        devices: tuple[Path, ...] = (NULL, RANDOM),
        *,
        proc: bool = False,
        written: tuple[int, ...] = (),
        serves: Path | None = None,
        network: bool = True,
        open_files: int = 1024,
        file_size: int | None = 0,
        disks: Mapping[Path, bool] | None = None,
        run_directory: Path | None = None,
        writable: tuple[Path, ...] = (),
        jailer: bool = False,
    ) -> None:
        self.files = files
        self.data = data
        self.devices = devices
        self.proc = proc
        self.written = written
        self.serves = serves
        self.network = network
        self.open_files = open_files
        self.file_size = None if serves is not None else file_size
        self.disks = disks or {}
        self.run_directory = run_directory
        self.writable = writable
        self.jailer = jailer

    def to_json(self) -> dict[str, object]:
        """Its fields as JSON has them: what the broker takes."""
        return {
            "files": [str(path) for path in self.files],
            "data": [str(path) for path in self.data],
            "devices": [str(path) for path in self.devices],
            "proc": self.proc,
            "written": list(self.written),
            "serves": str(self.serves) if self.serves is not None else None,
            "network": self.network,
            "open_files": self.open_files,
            "file_size": self.file_size,
            "disks": {str(path): readonly for path, readonly in self.disks.items()},
            "run_directory": None if self.run_directory is None else str(self.run_directory),
            "writable": [str(path) for path in self.writable],
            "jailer": self.jailer,
        }


def prefix_data(program: Path, *names: str) -> tuple[Path, ...]:
    """Directories below the prefix that a program is installed in, such as share/qemu and lib."""
    prefix = program.resolve().parent.parent
    return tuple(prefix / name for name in names)


def readable(descriptor: int, theirs: contextlib.ExitStack) -> int:
    """A descriptor of the same file that any user may open again through /proc, closed by `theirs`.

    It is the same one where everybody may read the file, and otherwise that of a sealed copy in memory.
    """
    found = os.fstat(descriptor)
    if found.st_mode & stat.S_IROTH:
        return descriptor
    copy = os.memfd_create("readable", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    theirs.callback(os.close, copy)
    offset = 0
    while offset < found.st_size and (sent := os.sendfile(copy, descriptor, offset, 1 << 30)):
        offset += sent
    os.lseek(copy, 0, os.SEEK_SET)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return copy
