"""The shim's log: lines for containerd, which reads them from the FIFO `log` in the bundle."""

from __future__ import annotations

import logging
import os

from kata_runtime.logging import line
from kata_runtime.stdio.log_fifo import FifoHandler

_LEVELS = {"WARNING": "warning", "CRITICAL": "fatal"}


class LogfmtFormatter(logging.Formatter):
    """Lines as containerd's own: time="..." level=info msg="..." sandbox=..."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__()
        self._sandbox_id = sandbox_id

    def format(self, record: logging.LogRecord) -> str:
        """One line for one record; a traceback becomes part of the message."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        return line(level, message, self._sandbox_id, record.created)


def set_up(bundle: str, sandbox_id: str, *, debug: bool, foreground: bool) -> None:
    """Send the log to containerd, or to standard error in the foreground or without the FIFO."""
    handler: logging.Handler
    try:
        handler = logging.StreamHandler() if foreground else FifoHandler(os.path.join(bundle, "log"))
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(LogfmtFormatter(sandbox_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    # Chatty below what an operator asks for when debugging a sandbox.
    for name in ("asyncio", "qemu"):
        logging.getLogger(name).setLevel(logging.WARNING)
