"""What the shim gives up before its filter goes on: its user, capabilities, files, and core dumps.

What it needs from then on is open: its sockets, the guest's devices, the log. The order matters: Landlock
comes when the user has changed, which may signal other threads, and binds the calling thread and those that
it makes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

from kata_runtime import syscalls
from kata_runtime.broker import descriptors


def hold_files_read_only() -> None:
    """Put each file that this process has open to read behind a mount of its own that is read-only.

    They are other pods' too: the guest's image, a template. Whoever owns this process may pass them to
    virtiofsd, which the guest may own as well, and which as root would open them for writing. So is
    /dev/null, a standard stream, whose mode it would change for everybody; other devices are opened so.

    Raises:
        OSError: it could not be done of one, whose path is in it.
    """
    for number, kind in descriptors.kinds(os.getpid()).items():
        access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if kind != os.devnull and (kind != "file" or access != os.O_RDONLY):
            continue
        if os.fstatvfs(number).f_flag & os.ST_RDONLY:
            continue
        try:
            same = syscalls.open_read_only(number, access)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.readlink(f"/proc/self/fd/{number}")) from None
        os.dup2(same, number, inheritable=os.get_inheritable(number))
        os.close(same)


def give_up(user: int) -> bool:
    """Become a user without any capability; return whether Landlock denies this process files, as was tried.

    Raises:
        OSError: something could not be given up: the process must not go on.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscalls.become_user(user)
    syscalls.forbid_dumps()
    if not syscalls.deny_files():
        return False
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    raise OSError(errno.ENOTRECOVERABLE, "Landlock does not deny it to open /")
