"""The guest's root filesystem: crun, the guest agent with what it runs on, and nothing that they do not use.

A library stays when a program that stays is linked to it.
"""

from __future__ import annotations

import posixpath
import re
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kata_runtime.image import command, elf
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.errors import ContentError
from kata_runtime.image.tree import Tree

INIT = "usr/sbin/init"
NAMESPACE = uuid.UUID("6b617461-2d72-756e-7469-6d652d707921")

PROGRAM = re.compile(r"usr/bin/(crun|python3\.\d+)")
STDLIB = re.compile(r"usr/lib/python3\.\d+/(?P<path>.+)")
LIBRARY = re.compile(r"usr/lib/[^/]+-linux-gnu/lib[^/]+\.so[^/]*")
LOADER = re.compile(r"usr/lib(64|/[^/]+-linux-gnu)?/ld-linux[^/]+")
DLOPENED = ("libgcc_s.so.1",)  # the C library loads it when a thread is cancelled

# What a guest agent has no use for, by first component, in the standard library and among its extensions.
UNUSED_MODULES = re.compile(
    r"(__phello__|_pydecimal|_pyrepl|antigravity|bdb|cProfile|cgi|cgitb|curses|dbm|distutils|doctest|ensurepip|"
    r"ftplib|idlelib|imaplib|lib2to3|mailbox|msilib|nntplib|pdb|pickletools|poplib|profile|pstats|pyclbr|"
    r"pydoc|pydoc_data|smtplib|sqlite3|ssl|telnetlib|test|this|tkinter|tracemalloc|turtle|turtledemo|unittest|"
    r"venv|webbrowser|wsgiref|xdrlib|xmlrpc|zipapp|__pycache__|\w+-packages|EXTERNALLY-MANAGED|LICENSE)(\..*)?"
)
UNUSED_EXTENSIONS = re.compile(
    r"(_?test\w*|_xx\w+|xx\w+|_ctypes_test|_codecs_\w+|_crypt|_curses\w*|_dbm|_gdbm|_hashlib|_lsprof|_sqlite3|"
    r"_ssl|_tkinter|audioop|nis|ossaudiodev|readline|_?interp\w*|_remote_debugging)\..*"
)
PASSWD = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


class GuestAgent(Protocol):
    """What is the guest's init and answers the host: this project's agent, or a program of one's own."""

    @property
    def needs_python(self) -> bool:
        """Whether the guest has to have Python."""

    @property
    def described(self) -> str:
        """Whose agent it is and which, for the manifest."""

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Yield all that decides its bytes in the image, by name."""

    def add(self, tree: Tree) -> None:
        """Put it beside the packages' files, none of which has been dropped yet.

        Raises:
            ContentError: they lack something that it needs.
        """

    def finish(self, root: Path) -> None:
        """Complete it below a directory with all of the guest's files, and see that it can start there.

        Raises:
            ContentError: it cannot.
            ToolError: a program failed.
        """

    def components(self) -> list[Component]:
        """Return what it is made of, for the bill of materials."""


def keep(path: str) -> bool:
    """Whether a file of the guest's packages may be part of the root filesystem."""
    if match := STDLIB.fullmatch(path):
        first, _, rest = match["path"].partition("/")
        if first == "lib-dynload":
            return not UNUSED_EXTENSIONS.fullmatch(rest)
        return not UNUSED_MODULES.fullmatch(first)
    return bool(PROGRAM.fullmatch(path)) or is_library(path)


def assemble(packages: Tree, agent: GuestAgent) -> Tree:
    """Return the root filesystem's files, without what the agent makes of its own at the end.

    packages: what `keep` approved of the guest's packages; it is used up.

    Raises:
        ContentError: a program needs a library that no package has, or the agent something else.
    """
    tree = packages
    agent.add(tree)
    drop_unused_libraries(tree)
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.link(name, f"usr/{name}")
    for name in (
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "usr/sbin",
        "usr/lib64",
        "var/lib",
        "var/tmp",
        "etc",
        "mnt",
    ):
        tree.directory(name)
    tree.file("etc/passwd", PASSWD.encode())
    tree.file("etc/group", GROUP.encode())
    tree.file("etc/hostname", b"kata\n")
    tree.link("etc/resolv.conf", "/run/resolv.conf")
    tree.link("etc/mtab", "/proc/self/mounts")
    tree.link("var/run", "/run")
    return tree


def is_library(path: str) -> bool:
    """Whether a path of the guest's is that of a shared library or of the dynamic loader."""
    return bool(LIBRARY.fullmatch(path) or LOADER.fullmatch(path))


def drop_unused_libraries(tree: Tree) -> None:
    """Remove the shared libraries that nothing else in the tree is linked to.

    Raises:
        ContentError: a library that something is linked to is missing.
    """
    libraries = {posixpath.basename(path): path for path in tree.entries if LIBRARY.fullmatch(path)}
    loaders = {posixpath.basename(path) for path in tree.entries if LOADER.fullmatch(path)}
    pending = [path for path in tree.entries if not LIBRARY.fullmatch(path)]
    pending += [libraries[name] for name in DLOPENED if name in libraries]
    used: set[str] = set()
    while pending:
        path = pending.pop()
        if path in used:
            continue
        used.add(path)
        for name in _needs(tree, path):
            if name in libraries:
                pending.append(libraries[name])
            elif name not in loaders:
                raise ContentError(f"/{path} needs {name}, which none of the guest's packages has")
    for path in tree.entries.keys() - used:
        tree.remove(path)


def _needs(tree: Tree, path: str) -> list[str]:
    """Return the names of the libraries that a file needs; a link needs the file that it names."""
    entry = tree.entries[path]
    if stat.S_ISLNK(entry.mode):
        return [posixpath.basename(entry.data.decode())] if LIBRARY.fullmatch(path) else []
    return list(elf.needed(entry.data)) if elf.is_elf(entry.data) else []


def make(tree: Tree, agent: GuestAgent, scratch: Path, output: Path, identity: str) -> None:
    """Write the root filesystem's image.

    scratch: a directory that does not exist yet, for the files. identity: decides the filesystem's UUID.

    Raises:
        ContentError: the agent cannot start in the image.
        ToolError, OutputError: a program failed.
    """
    # Compressed on purpose: under emulation, lz4 costs less than reading the blocks that it saves.
    tree.write(scratch)
    agent.finish(scratch)
    marks = ["-T0", "-U", str(uuid.uuid5(NAMESPACE, identity)), "--all-root"]
    command.run(["mkfs.erofs", "-d0", "-zlz4hc", "-x-1", *marks, str(output), str(scratch)])


def load(root: Path, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> bytes:
    """Run the image's dynamic loader with the image's libraries; this needs no root, as a chroot would.

    arguments: of the loader, a program among them. Returns what was printed, errors too.

    Raises:
        ContentError: the guest has no loader. ToolError: it failed.
    """
    loaders = [path for path in sorted(root.glob("usr/lib*/**/ld-linux*")) if not path.is_symlink()]
    if not loaders:
        raise ContentError("the guest's packages have no dynamic loader (ld-linux)")
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu"))
    argv = [str(loaders[0]), "--library-path", libraries, *arguments]
    return command.run(argv, extra=extra, errors=True)
