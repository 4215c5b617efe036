"""The guest's kernel: its modules, and the order in which they load.

The kernel package has no modules.dep (depmod writes that at installation), so dependencies are read where
depmod and modprobe's softdeps have them from: the `.modinfo` section of each module.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kata_runtime.image import command, elf
from kata_runtime.image.errors import ContentError
from kata_runtime.image.tree import Tree

IMAGE = re.compile(r"boot/vmlinuz-(?P<release>.+)")
MODULE = re.compile(r"usr/lib/modules/[^/]+/kernel/(?P<path>.*/(?P<name>[^/]+))\.ko(?P<compression>\.\w+)?")
BUILTIN = re.compile(r"usr/lib/modules/[^/]+/modules\.builtin")


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module, decompressed. name: as the kernel has it, with underscores."""

    name: str
    data: bytes


class Kernel:
    """A kernel and its modules, from the files of its packages.

    Raises:
        ContentError: the packages do not have exactly one kernel image, or no list of what is built in.
    """

    def __init__(self, files: Tree) -> None:
        images = {match["release"]: path for path in files.entries if (match := IMAGE.fullmatch(path))}
        builtin = next((path for path in files.entries if BUILTIN.fullmatch(path)), None)
        if len(images) != 1 or builtin is None:
            raise ContentError(
                f"expected one kernel with its modules in the packages, found {sorted(images) or 'none'}"
            )
        ((self.release, image),) = images.items()
        self.image = files.entries[image].data
        self._files = files
        self._modules: dict[str, Module] = {}
        self._paths = {
            canonical(match["name"]): path for path in files.entries if (match := MODULE.fullmatch(path))
        }
        self._builtin = {
            canonical(posixpath.basename(line).partition(".ko")[0])
            for line in files.entries[builtin].data.decode().splitlines()
        }

    @staticmethod
    def keep(path: str) -> bool:
        """Whether a file of the kernel's packages belongs to the kernel."""
        return any(pattern.fullmatch(path) for pattern in (IMAGE, MODULE, BUILTIN))

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Return the names of the modules whose path in the kernel's directory, without suffix, matches."""
        return sorted(
            name
            for name, path in self._paths.items()
            if (match := MODULE.fullmatch(path)) and pattern.fullmatch(match["path"])
        )

    def has(self, name: str) -> bool:
        """Whether there is a module of this name, or what it does is built in."""
        return name in self._paths or name in self._builtin

    def load_order(self, names: Iterable[str]) -> list[Module]:
        """Return these modules and all that they need, each after what it needs; built-in ones are left out.

        Raises:
            ContentError: the kernel has one of them neither as a module nor built in.
        """
        ordered: dict[str, Module] = {}
        for name in names:
            self._visit(canonical(name), "the guest", ordered, ())
        return list(ordered.values())

    def _visit(self, name: str, wanted_by: str, ordered: dict[str, Module], path: tuple[str, ...]) -> None:
        if name in ordered or name in self._builtin:
            return
        if name not in self._paths:
            raise ContentError(f"kernel {self.release} has no module {name}, which {wanted_by} needs")
        if name in path:
            raise ContentError(
                f"kernel {self.release}: modules need each other: {' -> '.join((*path, name))}"
            )
        module = self._module(name)
        info = elf.module_info(module.data)
        for dependency in _depends(info):
            self._visit(dependency, name, ordered, (*path, name))
        for dependency in _loaded_before(info):
            # A wish, not a need: what has no module of this name is built in under another.
            if dependency in self._paths:
                self._visit(dependency, name, ordered, (*path, name))
        ordered[name] = module

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            self._modules[name] = Module(name, self._content(name))
        return self._modules[name]

    def _content(self, name: str) -> bytes:
        path = self._paths[name]
        data = self._files.entries[path].data
        match path.rpartition(".")[2]:
            case "xz":
                return lzma.decompress(data)
            case "gz":
                return gzip.decompress(data)
            case "zst":
                return command.run(["zstd", "--decompress", "--stdout", "--quiet"], stdin=data)
            case _:
                return data


def canonical(name: str) -> str:
    """Return a module's name as the kernel writes it: virtio-rng is virtio_rng."""
    return name.replace("-", "_")


def _depends(info: dict[str, list[str]]) -> list[str]:
    return [canonical(name) for line in info.get("depends", []) for name in line.split(",") if name]


def _loaded_before(info: dict[str, list[str]]) -> list[str]:
    names: list[str] = []
    for line in info.get("softdep", []):
        before = line.partition("post:")[0].replace("pre:", " ")
        names += [canonical(name) for name in before.split()]
    return names
