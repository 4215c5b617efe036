"""Opening what containerd gave for a container's standard streams.

A file is looked at before it is opened to read or write, by a descriptor that does neither: opening a device
may have effects of its own. Then that very file is opened, and none that took its name meanwhile.
"""

from __future__ import annotations

import os
import stat

from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.phase import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_runtime.broker.authorization import Authorization
    from kata_runtime.broker.held_directories import Opener

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_LOG = _LOG_FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_LOG_MODE = 0o640
MAX_LOGS = 4096
"""Logs that are made for one sandbox: each takes a file of the host's, which no cgroup counts."""


class Streams:
    """The streams that one sandbox may have; see `Authorization`."""

    def __init__(self, authorization: Authorization) -> None:
        self._authorization = authorization
        self._made = 0

    def open_fifo(self, path: str, flags: int) -> int:
        """Open a FIFO.

        Raises:
            RequestFailedError: it cannot be opened. RequestRefusedError: it is something else, or may not be.
        """
        opener = self._authorization.fifo_opener(path)
        try:
            return _open_if(stat.S_ISFIFO, opener, flags | os.O_CLOEXEC, f"{path} is not a FIFO")
        except OSError as error:
            raise _failure(path, error) from None

    def open_log(self, path: str) -> int:
        """Open a regular file to append to. Raises as `open_fifo` does.

        One that is missing is made, and before the seal so are the directories above it, as containerd does.
        """
        opener = self._authorization.log_opener(path)
        try:
            try:
                log = _open_if(stat.S_ISREG, opener, _LOG_FLAGS, f"{path} is not a regular file")
            except FileNotFoundError:
                return self._make_log(path, opener)
        except OSError as error:
            raise _failure(path, error) from None
        if not self._authorization.is_own_log(path):
            os.close(log)
            raise RequestRefusedError(
                f"cannot open the log {path}: the sandbox is sealed, and the file is there already, so it "
                "may be the host's or another pod's; name a new one, or a log that the sandbox has had"
            )
        return log

    def _make_log(self, path: str, opener: Opener) -> int:
        if self._made >= MAX_LOGS:
            raise RequestRefusedError(f"cannot make the log {path}: {MAX_LOGS} were made for the sandbox")
        if self._authorization.phase is Phase.LEARNING:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        log = opener(_NEW_LOG, _LOG_MODE)
        self._authorization.own_log(path)
        self._made += 1
        return log


def _open_if(is_right: Callable[[int], bool], opener: Opener, flags: int, refusal: str) -> int:
    found = opener(_LOOK, 0)
    try:
        if not is_right(os.fstat(found).st_mode):
            raise RequestRefusedError(refusal)
        return os.open(f"/proc/self/fd/{found}", flags)
    finally:
        os.close(found)


def _failure(path: str, error: OSError) -> RequestFailedError:
    return RequestFailedError(f"cannot open {path}: {error.strerror}", error.errno or 0)
