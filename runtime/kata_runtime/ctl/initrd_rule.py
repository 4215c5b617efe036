"""The rule of configuration that needs an initrd to be read: whether it is a whole guest, beside an image.

Kata's own initrds are: each has the agent, or an init that is the agent, and mounts no image. Source: Kata
Containers 4.1.0, tools/osbuilder/initrd-builder/initrd_builder.sh.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from kata_configuration.diagnostics import Finding
from kata_configuration.judge.rule import Rule
from kata_configuration.judge.rules import is_whole_guest_by_name, unused_image
from kata_configuration.models.base import MachineTable
from kata_runtime.image import cpio

AGENT = "usr/bin/kata-agent"
INIT, AGENT_AS_INIT = "init", b"/sbin/init"


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
    with path.open("rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        archive = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
        for member in cpio.members(archive):
            if member.path == AGENT and stat.S_ISREG(member.mode):
                return True
            if member.path == INIT and stat.S_ISLNK(member.mode) and member.data == AGENT_AS_INIT:
                return True
    return False


INITRD_RULE = Rule("hypervisor", ("image", "initrd"), _check)
