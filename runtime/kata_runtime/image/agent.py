"""This project's guest agent in the root filesystem: Python, and the packages that the agent is made of.

Python's own modules are kept as byte code only: the root filesystem is read-only, and starting under
emulation is quicker without looking for sources. The agent's sources stay beside their byte code, so that its
tracebacks can be read.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kata_runtime.image import cyclonedx, rootfs
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.errors import ContentError, ToolError
from kata_runtime.image.tree import Tree
from kata_runtime.version import VERSION

AGENT_ROOT = "usr/lib/kata-agent"
INTERPRETER = re.compile(r"usr/bin/python3\.\d+")
HOST_ONLY = re.compile(r"(client|transports?)(\W.*)?")
PROTOBUF_VERSION = re.compile(r"""^__version__ = ['"]([^'"]+)['"]""", re.MULTILINE)

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

    @property
    def needs_python(self) -> bool:
        """See GuestAgent."""
        return True

    @property
    def described(self) -> str:
        """See GuestAgent."""
        return f"this project's, {VERSION}"

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that the guest needs: path below the agent's root, and where it is on the host."""
        yield from _sources("kata_agent", self.package, skip=HOST_ONLY)
        yield from _sources("google/protobuf", self.protobuf, skip=re.compile("compiler|testdata"))
        yield from _sources("google/_upb", self.protobuf.parent / "_upb", skip=re.compile("$^"))

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """See GuestAgent."""
        for path, source in self.files():
            yield path, source.read_bytes()

    def add(self, tree: Tree) -> None:
        """See GuestAgent."""
        for path, content in self.inputs():
            tree.file(f"{AGENT_ROOT}/{path}", content)
        tree.link("usr/bin/python3", _interpreter(tree))
        tree.file(rootfs.INIT, INIT.encode(), 0o755)

    def finish(self, root: Path) -> None:
        """Compile all Python files for the image's own Python, and see whether it can import the agent.

        Compiled by hash, so that no time of a file is recorded.
        """
        how = ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        common = [*how, "-s", str(root), "-p", "/"]
        (stdlib,) = (root / "usr/lib").glob("python3.*")
        # Sorted names and a fixed seed give the same byte code; "-b" puts it where it works without sources.
        _python(root, [*common, "-b", str(stdlib)])
        _python(root, [*common, str(root / AGENT_ROOT)])
        for source in stdlib.rglob("*.py"):
            source.unlink()
        try:
            _python(root, ["-c", CHECK, str(root)])
        except ToolError as error:
            raise ContentError(f"the image's Python cannot import the guest agent: {error}") from error

    def components(self) -> list[Component]:
        """See GuestAgent.

        Raises:
            ContentError: protobuf does not have its version.
        """
        match = PROTOBUF_VERSION.search((self.protobuf / "__init__.py").read_text(encoding="utf-8"))
        if match is None:
            raise ContentError(
                f"{self.protobuf}/__init__.py has no __version__, which the image's bill of materials lists: "
                "install protobuf from its wheel"
            )
        purl = cyclonedx.package_url("pypi", "protobuf", version=match[1])
        protobuf = Component("library", "protobuf", match[1], purl)
        return [Component("application", "kata-agent", VERSION, needs=[protobuf.reference]), protobuf]


def _interpreter(tree: Tree) -> str:
    names = [posixpath.basename(path) for path in tree.entries if INTERPRETER.fullmatch(path)]
    if len(names) != 1:
        raise ContentError(f"expected one Python in the guest's packages, found {names or 'none'}")
    return names[0]


def _python(root: Path, arguments: list[str]) -> None:
    program = (root / "usr/bin/python3").resolve()
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0"}
    rootfs.load(root, [str(program), "-SB", *arguments], environment)


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
