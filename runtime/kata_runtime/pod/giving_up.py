"""What the shim gives up before its filter goes on: its user, capabilities, files, and core dumps.

What it needs from then on is open: its sockets, the guest's devices, the log. The order matters: Landlock
comes when the user has changed, which may signal other threads, and binds the calling thread and those that
it makes.
"""

from __future__ import annotations

import resource

from kata_runtime import syscalls


def give_up(user: int) -> str:
    """Become a user without any capability; return what the kernel lacks of Landlock, or nothing.

    Raises:
        OSError: something could not be given up: the process must not go on.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscalls.become_user(user)
    syscalls.forbid_dumps()
    if not syscalls.deny_files():
        return "this kernel has no Landlock: the runtime's process is kept from files by its filter alone"
    return ""
