"""A guest agent of one's own: one ELF program, such as upstream's agent, in place of this project's.

It becomes the guest's init. A static program needs nothing; one that is linked to libraries must find them in
the guest, which has those of its own packages only. What would not start there is refused when the image is
made: in a guest it would be a machine that ends without a word.

Source: execve(2) and elf(5) for what the kernel starts; ld.so(8) for --list.
"""

from __future__ import annotations

import hashlib
import os
import platform
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata_hypervisor.elf import ET_DYN, ET_EXEC, PT_INTERP, PT_LOAD, ElfError, ElfFile, reader_of
from kata_runtime.image import elf, rootfs, trusted
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.errors import ContentError
from kata_runtime.image.tree import Tree, normal

MAX_PATH = 4096
"""Bytes of the longest path of a loader (PATH_MAX)."""


@dataclass(frozen=True, slots=True)
class AgentProgram:
    """A program that has been looked at, and read.

    path: of the file on the host. loader: the path that it names for its loader, None for a static one.
    """

    path: Path
    content: bytes
    loader: str | None

    @classmethod
    def read(cls, path: Path, machine: str | None = None) -> AgentProgram:
        """Read a program. machine: what it must run on, None for this host.

        Raises:
            ContentError: it is no program for this machine, or others may change it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is not waited for
        except OSError as error:
            raise _refused(path, str(error.strerror)) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _refused(path, "it is not a regular file")
            if fault := trusted.fault_of(path, status):
                raise _refused(path, f"{fault}: copy it to where root alone writes")
            loader = _loader_of(descriptor, status.st_size, machine or platform.machine())
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            if loader is None and elf.needed(content):
                raise ElfError("is a library, not a program: it needs others and names no loader")
        except ElfError as error:
            raise _refused(path, f"it {error}") from error
        finally:
            os.close(descriptor)
        return cls(path, content, loader)

    @property
    def needs_python(self) -> bool:
        """See GuestAgent."""
        return False

    @property
    def described(self) -> str:
        """See GuestAgent."""
        return f"one's own (--agent), {len(self.content)} bytes, sha256 {self._sha256}"

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """See GuestAgent."""
        yield rootfs.INIT, self.content

    def add(self, tree: Tree) -> None:
        """See GuestAgent."""
        if self.loader is not None:
            there = {posixpath.basename(path) for path in tree.entries if rootfs.is_library(path)}
            missing = [name for name in elf.needed(self.content) if name not in there]
            if tree.read(normal(self.loader)) is None:
                missing.insert(0, self.loader)
            if missing:
                raise self._unlinked(f"it needs {', '.join(missing)}, which the image has not")
        tree.file(rootfs.INIT, self.content, 0o755)

    def finish(self, root: Path) -> None:
        """Ask the image's own loader whether it finds all libraries, in the versions that they are needed."""
        if self.loader is None:
            return
        output = rootfs.load(root, ["--list", str(root / rootfs.INIT)])
        for line in output.decode("utf-8", "replace").splitlines():
            if "not found" in line:
                raise self._unlinked(f"the image's loader says: {line.strip().replace(str(root), '')}")

    def components(self) -> list[Component]:
        """See GuestAgent."""
        return [Component("application", "kata-agent", sha256=self._sha256)]

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def _unlinked(self, reason: str) -> ContentError:
        return _refused(self.path, f"{reason}: link it statically")


def _refused(path: Path, reason: str) -> ContentError:
    return ContentError(f"cannot use {path} as the guest's agent: {reason}")


def _loader_of(descriptor: int, size: int, machine: str) -> str | None:
    """Return the loader that a program names, None for a static one. size: of the file. Raises ElfError."""
    read = reader_of(descriptor)
    file = ElfFile(read)
    if file.machine != machine or file.bits != 64:
        raise ElfError(f"is for {file.machine} ({file.bits} bits), and the guest's processor is {machine}")
    if file.header.e_type not in (ET_EXEC, ET_DYN) or not file.header.e_entry:
        raise ElfError("is not a program: it has no address to start at")
    programs = file.programs()
    if any(one.p_type == PT_LOAD and one.p_offset + one.p_filesz > size for one in programs):
        raise ElfError("ends before what it is to load")
    for one in programs:
        if one.p_type == PT_INTERP:
            raw = read(one.p_offset, min(one.p_filesz, MAX_PATH))
            return raw.partition(b"\0")[0].decode("utf-8", "replace")
    return None
