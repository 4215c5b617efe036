"""Which C library a program was built with: its loader makes calls that a filter has to know of.

Sources: the names of loaders, and the ABI tag that glibc puts into every program (Linux Standard Base, 11.2),
from the two libraries.
"""

from __future__ import annotations

import os

from kata_hypervisor import elf
from kata_hypervisor.elf import ElfError, ElfFile
from kata_hypervisor.errors import HostUnfitError

GLIBC, MUSL = "glibc", "musl"

_MACHINES = {"x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64}
_LOADERS = {"ld-linux": GLIBC, "ld-musl": MUSL}
_ABI_TAG = (b"GNU\0", 1)
_MAX_PATH = 4096


def libc_of(path: str) -> str:
    """GLIBC or MUSL; a program that is linked statically, without glibc's tag, is taken for musl's.

    Raises:
        HostUnfitError: it cannot be read, is no program for this machine, or of another C library.
    """
    try:
        with open(path, "rb") as file:
            return _libc_of(path, elf.reader_of(file.fileno()))
    except ElfError as error:
        raise HostUnfitError(
            f"{path} {error}; the seccomp filter for it depends on its C library: set path to the program "
            "itself, not to a script that starts it"
        ) from error
    except OSError as error:
        raise HostUnfitError(f"cannot read {path}: {error}") from error


def _libc_of(path: str, read: elf.Read) -> str:
    file = ElfFile(read)
    if file.bits != 64 or file.header.e_machine != _MACHINES.get(os.uname().machine):
        raise HostUnfitError(f"{path} is a program for another machine: {file.machine}, {file.bits} bits")
    programs = file.programs()
    for program in programs:
        if program.p_type == elf.PT_INTERP:
            loader = read(program.p_offset, min(program.p_filesz, _MAX_PATH))
            return _libc_of_loader(path, loader.rstrip(b"\0").decode("utf-8", "replace"))
    notes = (note for one in programs if one.p_type == elf.PT_NOTE for note in file.notes(one))
    return GLIBC if any((note.owner, note.kind) == _ABI_TAG for note in notes) else MUSL


def _libc_of_loader(path: str, loader: str) -> str:
    for prefix, libc in _LOADERS.items():
        if os.path.basename(loader).startswith(prefix):
            return libc
    raise HostUnfitError(
        f"{path} is loaded by {loader}: there is a filter for programs of glibc and of musl only"
    )
