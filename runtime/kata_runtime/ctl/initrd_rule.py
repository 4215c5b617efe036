"""The rule of configuration that needs an initrd to be read: whether it is a whole guest, beside an image.

Kata's own initrds are: each has the agent, or an init that is the agent, and mounts no image. Source: Kata
Containers 4.1.0, tools/osbuilder/initrd-builder/initrd_builder.sh; of the archive, the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from kata_configuration.diagnostics import Finding
from kata_configuration.judge.rule import Rule
from kata_configuration.judge.rules import is_whole_guest_by_name, unused_image
from kata_configuration.models.base import MachineTable
from kata_runtime.image.cpio import TRAILER

AGENT = "usr/bin/kata-agent"
INIT, AGENT_AS_INIT = "init", b"/sbin/init"

_HEADER = 110
_MAGICS = (b"070701", b"070702")
_PIECE = 1 << 20
_LONGEST = 4096
"""Of a path, and of what a link names (PATH_MAX)."""


class _Member(NamedTuple):
    """A member of an archive. data: what a symbolic link names, of others empty."""

    path: str
    mode: int
    data: bytes


def _check(table: MachineTable) -> Iterator[Finding]:
    initrd = table.initrd
    if table.image is None or initrd is None or is_whole_guest_by_name(initrd):
        return  # of the name another rule speaks, which needs no file
    try:
        whole = _is_whole_guest(initrd)
    except (OSError, EOFError, ValueError, zlib.error):
        return  # that it cannot be read is said elsewhere, or for the kernel to say
    if whole:
        yield unused_image(f"{initrd.name} has Kata's agent in it, and is a whole guest")


def _is_whole_guest(path: Path) -> bool:
    """Whether an archive has an agent to start. Raises OSError, EOFError, ValueError, zlib.error."""
    if not path.is_file():
        return False  # such as a pipe, which nobody may write to
    with path.open("rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        archive = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
        for member in _members(archive):
            if member.path == AGENT and stat.S_ISREG(member.mode):
                return True
            if member.path == INIT and stat.S_ISLNK(member.mode) and member.data == AGENT_AS_INIT:
                return True
    return False


def _members(archive: IO[bytes]) -> Iterator[_Member]:
    """Yield the members of an archive up to its end, or to what is none.

    Raises:
        ValueError: a header is malformed. OSError, EOFError: the file cannot be read, or is cut off.
    """
    while (header := archive.read(_HEADER)).startswith(_MAGICS):
        numbers = [int(header[at : at + 8], 16) for at in range(6, _HEADER, 8)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        if not 0 < length <= _LONGEST or (stat.S_ISLNK(mode) and size > _LONGEST):
            raise ValueError("a name is longer than paths are, or none")
        name = archive.read(length + -(_HEADER + length) % 4)
        path = name[: length - 1].decode(errors="surrogateescape").removeprefix("./")
        if path == TRAILER:
            return
        left, data = size + -size % 4, b""
        while left > 0 and (piece := archive.read(min(left, _PIECE))):
            left -= len(piece)
            data += piece if stat.S_ISLNK(mode) else b""
        yield _Member(path, mode, data[:size])


INITRD_RULE = Rule("hypervisor", ("image", "initrd"), _check)
