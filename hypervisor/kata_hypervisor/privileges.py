"""What a driver's process may see and have on the host: its own root, user and namespaces; nothing else.

A process with `Privileges` runs as the user of its pod, without capabilities and with no_new_privs, in mount,
IPC, UTS, PID and network namespaces that are not the host's. Its root directory holds its program, the
directories of shared libraries, and what is listed here, all of it read-only. Everything else that it needs
is a descriptor. The broker does this between fork and exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

NULL, RANDOM, KVM = Path("/dev/null"), Path("/dev/urandom"), Path("/dev/kvm")


@dataclass(frozen=True, slots=True)
class Privileges:
    """What a process is shown.

    files: files of the host, which must be readable for everybody. data: directories and files that are shown
    where they exist: firmware and the like. devices: character devices, which get nodes that the process's
    user owns. proc: whether it has /proc, of its own processes only. open_files: its limit of descriptors.
    """

    files: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = (NULL, RANDOM)
    proc: bool = False
    open_files: int = 1024

    def to_json(self) -> dict[str, object]:
        """Its fields as JSON has them: what the broker takes."""
        return {
            "files": [str(path) for path in self.files],
            "data": [str(path) for path in self.data],
            "devices": [str(path) for path in self.devices],
            "proc": self.proc,
            "open_files": self.open_files,
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
