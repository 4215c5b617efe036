"""What a zygote has imported, and whether it is still what the installation has."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOMS = {
    "kata_agent": ("guest",),  # it runs in the guest
    "kata_configuration": ("tell",),  # kata-ctl's
    "kata_hypervisor": (),
    "kata_runtime": (
        *("ctl", "image", "template"),  # kata-ctl's
        # The network program's, which is a process of its own.
        *("network.command", "network.kernel", "network.library", "network.links", "network.messages"),
        *("network.netlink", "network.operations", "network.program", "network.traffic"),
        "zygote.server",
    ),
}
"""The rooms, and in each the modules, with those inside them, that no shim and no broker imports."""

CLOCK_STEP = 0.1
"""Seconds by which the time of a file may lag behind the clock: the kernel's coarse clock has steps."""


def load(environment: Mapping[str, str]) -> None:
    """Import all that a shim or a broker may import, of every driver, and keep the collector off it.

    It stays off: the zygote makes nothing that it would find. A child turns it on. environment: where the
    configuration in force is looked for.
    What is imported here and read there is shared between all pods for as long as nobody writes to it.
    """
    gc.disable()
    for room, others in ROOMS.items():
        package = importlib.import_module(room)
        _load_below(package.__path__, room, {f"{room}.{name}" for name in others})
    from kata_runtime.pod import preload

    preload.load_modules()
    _load_policies()
    _rehearse(environment)
    from kata_runtime.zygote import heap

    gc.collect()
    heap.fill_gaps()
    gc.freeze()


def _rehearse(environment: Mapping[str, str]) -> None:
    """Do once what each shim does first, and forget it: libraries keep what they have made ready by then.

    A configuration that is refused is refused by each shim, with all that is wrong with it.
    """
    from kata_configuration import ConfigurationError, discover, kept
    from kata_hypervisor.errors import PolicyError, SealError
    from kata_hypervisor.seccomp import seal

    with contextlib.suppress(ConfigurationError):
        path, rule = discover(None, environment)
        for _ in ("it is judged, and kept", "what is kept is read"):
            kept.load(path, source=rule, annotations={})
    with contextlib.suppress(PolicyError, SealError):
        seal.build(seal.SHIM_FEATURES, "enforce")
        seal.build_broker((), "enforce", os.getpid())


def _load_policies() -> None:
    """Parse the policies, and load what compiles them. Where that fails, shims will say so."""
    from kata_hypervisor.errors import PolicyError, SealError
    from kata_hypervisor.seccomp import compiled, compiler, policy

    with contextlib.suppress(PolicyError, SealError):
        compiled.load_all()
        policy.load_policies()
        compiler.load_library()


def _load_below(path: Iterable[str], prefix: str, others: set[str]) -> None:
    for found in pkgutil.iter_modules(path, f"{prefix}."):
        if found.name in others:
            continue
        module = importlib.import_module(found.name)
        if found.ispkg:
            _load_below(module.__path__, found.name, others)


class Code:
    """The files of what was imported, the policies' and the interpreter's, as they were.

    started: when the importing began, in seconds of the wall clock.
    """

    def __init__(self, started: float) -> None:
        from kata_hypervisor.seccomp import compiled

        paths = {str(file) for module in tuple(sys.modules.values()) if (file := _file_of(module))}
        paths |= {entry.path for entry in os.scandir(compiled.POLICIES)}
        paths.add(os.path.realpath(sys.executable))
        self._files = {path: _facts(path) for path in sorted(paths)}
        # A file that changed while it was imported may be in here in two states.
        limit = int((started - CLOCK_STEP) * 1e9)
        self._torn = next((path for path, facts in self._files.items() if facts and facts[3] > limit), None)

    def __len__(self) -> int:
        return len(self._files)

    def find_change(self) -> str | None:
        """The first file that is not any more what was imported."""
        if self._torn is not None:
            return self._torn
        return next((path for path, facts in self._files.items() if _facts(path) != facts), None)


def _file_of(module: object) -> str | None:
    return getattr(module, "__file__", None)


def _facts(path: str) -> tuple[int, int, int, int, int] | None:
    """What changes with a file's content: its identity, size and times (inode(7)); None when it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns


def now() -> float:
    """The wall clock, as the times of files are told."""
    return time.time()
