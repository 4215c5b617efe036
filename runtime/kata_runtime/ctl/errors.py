"""How a command of kata-ctl says that it cannot do what was asked."""

from __future__ import annotations

import errno
import os


class CommandError(Exception):
    """A command cannot do what was asked, in a sentence: `main` prints it and ends with COULD_NOT_RUN."""


def sentence(error: OSError) -> str:
    """What the operating system refused, of which file, and what to do where root may."""
    reason = error.strerror or str(error)
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    denied = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    return f"{name}{reason[:1].lower()}{reason[1:]}{' (run kata-ctl as root)' if denied else ''}"
