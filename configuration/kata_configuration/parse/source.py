"""Reading a configuration file: bytes of a regular file of sane size, and their text."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from kata_configuration.diagnostics import Code, Diagnostic
from kata_configuration.errors import ConfigurationError

# Several times the longest file that Kata ships; judging a file of this size takes a second or two.
MAX_SIZE = 256 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Source(NamedTuple):
    """A file's bytes, its text with plain newlines (which moves no line and no column), and its status."""

    path: Path
    content: bytes
    text: str
    status: os.stat_result


def read(path: Path) -> Source:
    """Read a configuration file.

    Raises:
        ConfigurationError: it is missing, unreadable, no regular file, too large, or not UTF-8.
    """
    content, status = _read_bytes(path)
    if content.startswith(BYTE_ORDER_MARK):
        raise fault(
            Code.ENCODING,
            path,
            "begins with a byte order mark",
            "save it as UTF-8 without one",
            line=1,
            column=1,
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise fault(
            Code.ENCODING,
            path,
            f"byte 0x{content[error.start]:02x} is not UTF-8",
            "save the file as UTF-8",
            line=line,
            column=column,
        ) from None
    return Source(path, content, text.replace("\r\n", "\n"), status)


def require_regular(status: os.stat_result, path: Path) -> None:
    """Refuse what is not a regular file.

    Raises:
        ConfigurationError: it is a directory, a pipe, a device or a socket.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise fault(Code.UNREADABLE, path, f"is {kind}", "name a TOML file")


def unreadable(path: Path, error: OSError) -> ConfigurationError:
    """Return the error for what the system refuses."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return fault(Code.NOT_FOUND, path, "does not exist", "create it or name another file")
    reason = (error.strerror or str(error)).lower()
    return fault(Code.UNREADABLE, path, f"cannot be read: {reason}", "check the path and its permissions")


def fault(
    code: Code, path: Path, message: str, hint: str, *, line: int = 0, column: int = 0
) -> ConfigurationError:
    """Build the error for a fault of the file as a whole, or at one place of it."""
    return ConfigurationError([Diagnostic.of(code, str(path), message, hint, line=line, column=column)])


def _read_bytes(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        # Not blocking, because the path may name a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise fault(
            Code.UNREADABLE, path, "cannot be read: the path contains a NUL byte", "check the path"
        ) from None
    try:
        status = os.fstat(descriptor)
        require_regular(status, path)
        content = b""
        while len(content) <= MAX_SIZE and (chunk := os.read(descriptor, MAX_SIZE + 1)):
            content += chunk
    except OSError as error:
        raise unreadable(path, error) from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_SIZE:
        raise fault(Code.TOO_LARGE, path, f"is larger than {MAX_SIZE} bytes", "name a configuration file")
    return content, status
