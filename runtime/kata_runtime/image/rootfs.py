"""The guest's root filesystem: Python, crun, the guest agent, and nothing that they do not use.

A library stays when a program that stays is linked to it. Python's own modules are kept as byte code only:
the root filesystem is read-only, and starting under emulation is quicker without looking for sources. The
agent's sources stay beside their byte code, so that its tracebacks can be read.
"""

from __future__ import annotations

import posixpath
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kata_runtime.image import command, elf
from kata_runtime.image.errors import ContentError, ToolError
from kata_runtime.image.tree import Tree

AGENT_ROOT = "usr/lib/kata-agent"
NAMESPACE = uuid.UUID("6b617461-2d72-756e-7469-6d652d707921")

PROGRAM = re.compile(r"usr/bin/(crun|python3\.\d+)")
INTERPRETER = re.compile(r"usr/bin/python3\.\d+")
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
HOST_ONLY = re.compile(r"(client|transports?)(\W.*)?")

PASSWD = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"
INIT = f"""#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{AGENT_ROOT}")

from kata_agent.guest.main import main

sys.exit(main())
"""
CHECK = f"""
import sys
root = sys.argv[1]
sys.path.insert(0, root + "/{AGENT_ROOT}")
import kata_agent.guest.main
from google.protobuf.internal import api_implementation
if api_implementation.Type() != "upb":
    sys.exit("protobuf's compiled implementation does not load")
"""


@dataclass(frozen=True, slots=True)
class Agent:
    """The guest agent's files: the package `kata_agent` and the package `google.protobuf` that it runs on."""

    package: Path
    protobuf: Path

    @classmethod
    def installed(cls) -> Agent:
        """Return the agent and the protobuf that this interpreter has."""
        return cls(_package("kata_agent"), _package("google.protobuf"))

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that the guest needs: path below the agent's root, and where it is on the host."""
        yield from _sources("kata_agent", self.package, skip=HOST_ONLY)
        yield from _sources("google/protobuf", self.protobuf, skip=re.compile("compiler|testdata"))
        yield from _sources("google/_upb", self.protobuf.parent / "_upb", skip=re.compile("$^"))


def keep(path: str) -> bool:
    """Whether a file of the guest's packages may be part of the root filesystem."""
    if match := STDLIB.fullmatch(path):
        first, _, rest = match["path"].partition("/")
        if first == "lib-dynload":
            return not UNUSED_EXTENSIONS.fullmatch(rest)
        return not UNUSED_MODULES.fullmatch(first)
    return bool(PROGRAM.fullmatch(path) or LIBRARY.fullmatch(path) or LOADER.fullmatch(path))


def assemble(packages: Tree, agent: Agent) -> Tree:
    """Return the root filesystem's files, not yet compiled.

    packages: what `keep` approved of the guest's packages; it is used up.

    Raises:
        ContentError: a program needs a library that no package has, or there is not one Python.
    """
    tree = packages
    for path, source in agent.files():
        tree.file(f"{AGENT_ROOT}/{path}", source.read_bytes())
    drop_unused_libraries(tree)
    tree.link("usr/bin/python3", _interpreter(tree))
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
    tree.file("usr/sbin/init", INIT.encode(), 0o755)
    tree.file("etc/passwd", PASSWD.encode())
    tree.file("etc/group", GROUP.encode())
    tree.file("etc/hostname", b"kata\n")
    tree.link("etc/resolv.conf", "/run/resolv.conf")
    tree.link("etc/mtab", "/proc/self/mounts")
    tree.link("var/run", "/run")
    return tree


def _interpreter(tree: Tree) -> str:
    names = [posixpath.basename(path) for path in tree.entries if INTERPRETER.fullmatch(path)]
    if len(names) != 1:
        raise ContentError(f"expected one Python in the guest's packages, found {names or 'none'}")
    return names[0]


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


def make(tree: Tree, scratch: Path, output: Path, identity: str) -> None:
    """Write the root filesystem's image.

    scratch: a directory that does not exist yet, for the files. identity: decides the filesystem's UUID.

    Raises:
        ContentError: the image's Python cannot import the agent.
        ToolError, OutputError: a program failed.
    """
    # Compressed on purpose: under emulation, lz4 costs less than reading the blocks that it saves.
    tree.write(scratch)
    _compile(scratch)
    _check(scratch)
    marks = ["-T0", "-U", str(uuid.uuid5(NAMESPACE, identity)), "--all-root"]
    command.run(["mkfs.erofs", "-d0", "-zlz4hc", "-x-1", *marks, str(output), str(scratch)])


def _compile(root: Path) -> None:
    """Compile all Python files for the image's own Python; hashed, so that no time of a file is recorded."""
    common = [
        "-m",
        "compileall",
        "-q",
        "-f",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(root),
        "-p",
        "/",
    ]
    (stdlib,) = (root / "usr/lib").glob("python3.*")
    # Sorted names and a fixed seed give the same byte code; "-b" puts it where it works without the source.
    _python(root, [*common, "-b", str(stdlib)])
    _python(root, [*common, str(root / AGENT_ROOT)])
    for source in stdlib.rglob("*.py"):
        source.unlink()


def _check(root: Path) -> None:
    try:
        _python(root, ["-c", CHECK, str(root)])
    except ToolError as error:
        raise ContentError(f"the image's Python cannot import the guest agent: {error}") from error


def _python(root: Path, arguments: list[str]) -> None:
    """Run the image's Python with the image's libraries; this needs no root, as a chroot would."""
    loaders = [path for path in sorted(root.glob("usr/lib*/**/ld-linux*")) if not path.is_symlink()]
    if not loaders:
        raise ContentError("the guest's packages have no dynamic loader (ld-linux)")
    libraries = ":".join(str(path) for path in root.glob("usr/lib/*-linux-gnu"))
    program = (root / "usr/bin/python3").resolve()
    command.run(
        [str(loaders[0]), "--library-path", libraries, str(program), "-SB", *arguments],
        extra={"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0"},
    )


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ContentError(f"{name} is not installed for {sys.executable}: the guest agent is made of it")
    return Path(next(iter(spec.submodule_search_locations)))


def _sources(prefix: str, package: Path, *, skip: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package)
        if path.suffix in (".py", ".so") and not skip.fullmatch(relative.parts[0]):
            yield f"{prefix}/{relative}", path
