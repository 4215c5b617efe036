"""The FIFOs of containerd's clients, wherever they make them: a FIFO says by itself whether it is one.

The CRI makes a container's below containerd's `state`, which may be anywhere (k3s: /run/k3s/containerd); ctr
and all that use containerd's client make them in /run/containerd/fifo or where they are told to (ctr's
--fifo-dir); Docker makes them in a directory of its own. Whoever makes them, they are named after the process
and the stream, and nobody else may open them. Source: containerd, pkg/cio/io_unix.go, NewFIFOSetInDir and
openFifos (mode 0700), and moby, libcontainerd/remote/client_linux.go, newFIFOSet.
"""

from __future__ import annotations

import os
import stat

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.held_directories import Opener

ENDINGS = ("-stdin", "-stdout", "-stderr")


class ClientFifos:
    """FIFOs that are this process's user's (root's), that nobody else may open, and named as clients do.

    What a local user or a guest has put in the way is none: each is reached from the root without following a
    link, and looked at by the descriptor that is opened then. The host has other FIFOs, which a guest that
    owns the shim would like to have (init's, a login session's): none is named so.
    """

    def __init__(self) -> None:
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def opener(self, real: str) -> Opener | None:
        """How the FIFO at a path is opened; None when it is not named as clients name them.

        real: the path, without a link in it.
        """
        if not real.endswith(ENDINGS) or os.path.basename(real) in ENDINGS:
            return None
        return lambda flags, mode: self._open(real, flags)

    def _open(self, real: str, flags: int) -> int:
        found = syscalls.open_beneath(self._root, real.lstrip("/"), flags)
        status = os.fstat(found)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            os.close(found)
            raise RequestRefusedError(
                f"cannot open the FIFO {real}: the sandbox is sealed, and it is not root's alone; clients of "
                "containerd make theirs with mode 0700"
            )
        return found
