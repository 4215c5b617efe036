"""Which C library a program was built with: its loader makes calls that a filter has to know of.

Sources: the ELF-64 specification; the names of loaders, and the ABI tag that glibc puts into every program
(Linux Standard Base, 11.2), from the two libraries.
"""

from __future__ import annotations

import os
import struct

from kata_hypervisor.errors import HostUnfitError

GLIBC, MUSL = "glibc", "musl"

_FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little endian
_MACHINES = {"x86_64": 62, "aarch64": 183}
_INTERPRETER, _NOTE = 3, 4
_LOADERS = {"ld-linux": GLIBC, "ld-musl": MUSL}
_ABI_TAG = struct.pack("<III4s", 4, 16, 1, b"GNU")
_MAX_HEADERS, _MAX_SEGMENT = 64, 4096


def libc_of(path: str) -> str:
    """GLIBC or MUSL; a program that is linked statically, without glibc's tag, is taken for musl's.

    Raises:
        HostUnfitError: it cannot be read, is no program for this machine, or of another C library.
    """
    try:
        with open(path, "rb") as file:
            fd = file.fileno()
            header = os.pread(fd, _FILE_HEADER.size, 0)
            if len(header) < _FILE_HEADER.size or not header.startswith(_MAGIC):
                raise HostUnfitError(
                    f"{path} is no program but something that starts one, so that it cannot be told what the "
                    "program's C library does: name the program itself"
                )
            fields = _FILE_HEADER.unpack(header)
            if fields[2] != _MACHINES.get(os.uname().machine):
                raise HostUnfitError(f"{path} is a program for another machine: ELF machine {fields[2]}")
            offset, size, count = fields[5], fields[9], min(fields[10], _MAX_HEADERS)
            table = os.pread(fd, size * count, offset)
            segments = [
                _PROGRAM_HEADER.unpack_from(table, at)
                for at in range(0, len(table) - _PROGRAM_HEADER.size + 1, max(size, _PROGRAM_HEADER.size))
            ]
            parts = [
                (kind, os.pread(fd, min(length, _MAX_SEGMENT), at))
                for kind, _, at, _, _, length, _, _ in segments
            ]
    except (OSError, OverflowError) as error:
        raise HostUnfitError(f"cannot read {path}: {error}") from None
    for kind, content in parts:
        if kind == _INTERPRETER:
            return _named(path, content.rstrip(b"\0").decode("utf-8", "replace"))
    return GLIBC if any(kind == _NOTE and _ABI_TAG in content for kind, content in parts) else MUSL


def _named(path: str, loader: str) -> str:
    for beginning, libc in _LOADERS.items():
        if os.path.basename(loader).startswith(beginning):
            return libc
    raise HostUnfitError(
        f"{path} is loaded by {loader}: there is a filter for programs of glibc and of musl only"
    )
