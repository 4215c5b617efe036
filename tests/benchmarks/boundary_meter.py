"""CPU time of what the boundary adds to a pod's start, by stage, counted in the pod's own processes.

The launcher of a measured pod imports this and calls `install` before anything else. Functions of a stage are
wrapped when their module is imported; each counts what its thread, and the processes that it has waited for,
spend while it runs, without what a wrapped function in it counts itself. What a child does between fork and
exec is counted in the child. The numbers are in memory that all of them share; nothing is counted any more in
a process that is sealed, where a clock is a call that its filter may refuse.

Standard library only, and little of it: it is loaded where a shim has nothing loaded yet.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

LOADED = "modules loaded"
INSTALLED = "own filters: installed on children"
"""Counted elsewhere: a child under its filter cannot ask for the time."""

STAGES = {
    LOADED: (),
    "user, PID namespace and its init": (
        "kata_runtime.broker.pod_identity:PodIdentity.take",
        "kata_runtime.broker.pod_identity:PodIdentity._make_namespace",
        "kata_runtime.broker.confined_child:enter_nothing",
    ),
    "confined spawn: planned": (
        "kata_runtime.broker.confined_child:plan",
        "kata_runtime.broker.children:_give_away",
        "kata_runtime.syscalls:enter_pids",
    ),
    "confined spawn: root, namespaces, user": ("kata_runtime.broker.confined_child:enter",),
    "user namespace of virtiofsd": ("kata_runtime.broker.confined_child:map_users",),
    "own filters: built": (
        "kata_hypervisor.qemu.allowlist:build",
        "kata_hypervisor.virtiofsd:wrapper",
        "kata_hypervisor.seccomp.seal:build_broker",
    ),
    INSTALLED: (),
    "own filters: answered while they load": (
        "kata_runtime.broker.children:Children._answer_filter",
        "kata_runtime.broker.children:Children.end_loading",
        "kata_runtime.broker.child_filter:ChildFilterSupervisor.answer",
        "kata_runtime.broker.spawn:_take",
    ),
    "own filters: read back": ("kata_runtime.broker.children:Children.filters_effective",),
    "verification of rows": ("kata_runtime.broker.context:Context.verify_confinement",),
    "descriptors compared with lists": ("kata_runtime.broker.descriptors:find_unlisted",),
    "shim gives up privileges": ("kata_runtime.pod.giving_up:give_up",),
    "broker confines itself": ("kata_runtime.broker.context:Context.confine",),
    "devices cgroup": (
        "kata_runtime.broker.sandbox_cgroup:SandboxCgroup.restrict_devices",
        "kata_runtime.broker.device_rules:of_pod",
        "kata_runtime.broker.device_rules:given",
    ),
    "monitor passed on": (
        "kata_runtime.broker.context:Context.hold_monitor",
        "kata_runtime.broker.monitor:Monitor._on_vmm",
        "kata_runtime.broker.monitor:Monitor._on_shim",
    ),
}
"""By stage: the functions that are its own, as MODULE:NAME."""

MODULES = (
    "kata_runtime.confinement",
    "kata_runtime.confinement.facts",
    "kata_runtime.confinement.judging",
    "kata_runtime.confinement.mechanisms",
    "kata_runtime.confinement.reading",
    "kata_runtime.confinement.rows",
    "kata_runtime.broker.confined_child",
    "kata_runtime.broker.descriptors",
    "kata_runtime.broker.device_rules",
    "kata_runtime.broker.monitor",
    "kata_runtime.broker.pod_confinement",
    "kata_runtime.broker.pod_identity",
    "kata_runtime.broker.self_confinement",
    "kata_runtime.broker.vmm_directory",
    "kata_runtime.pod.giving_up",
    "kata_hypervisor.privileges",
    "kata_hypervisor.qemu.allowlist",
    "kata_hypervisor.seccomp.named_refusal",
)
"""What nothing but the boundary imports; counted as the first stage."""

TOTALS = {
    "shim in all": "kata_hypervisor.seccomp.seal:Seal.install",
    "broker in all": "kata_runtime.broker.context:Context.seal",
}
"""By process: where it is sealed, and all that it has spent by then is counted."""

SHARED = "shared"
"""What the boundary uses first, and the seal of the shim later: loading it is not counted as either's."""
SHARED_MODULES = (
    "base64",
    "json",
    "kata_hypervisor.seccomp.compiled",
    "kata_hypervisor.seccomp.program",
)

NAMES = (*STAGES, *TOTALS, SHARED)
_CELL = struct.Struct("q")


class Meter:
    """Counts in a file of one cell for each of NAMES, in nanoseconds."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._cells = mmap.mmap(file.fileno(), len(NAMES) * _CELL.size)
        self._sealed = False
        # Of the wrapped functions that run: what those within them have counted.
        self._within: list[int] = []

    def call(self, stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function for a stage."""
        if self._sealed:
            return function(*args, **kwargs)
        begin, owner = _spent(), os.getpid()
        self._within.append(0)
        try:
            return function(*args, **kwargs)
        finally:
            within = self._within.pop()
            if not self._sealed and os.getpid() == owner:
                spent = _spent() - begin
                self._add(stage, spent - within)
                if self._within:
                    self._within[-1] += spent

    def end(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Count all that this process has spent, and nothing more; then call the function."""
        if not self._sealed:
            self._add(name, time.process_time_ns())
            self._sealed = True
        return function(*args, **kwargs)

    def _add(self, name: str, nanoseconds: int) -> None:
        place = NAMES.index(name) * _CELL.size
        (before,) = _CELL.unpack_from(self._cells, place)
        _CELL.pack_into(self._cells, place, before + nanoseconds)


def _spent() -> int:
    """CPU time of this thread, and of the processes that were waited for, in nanoseconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time_ns() + int(1e9 * (children.ru_utime + children.ru_stime))


class _Importer:
    """On sys.meta_path, the first: wraps the functions of a module when it has been loaded."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._stages = {**dict.fromkeys(MODULES, LOADED), **dict.fromkeys(SHARED_MODULES, SHARED)}
        self._wanted: dict[str, list[tuple[str, str, Callable[..., Any]]]] = {}
        for stage, places in STAGES.items():
            for place in places:
                self._want(place, stage, meter.call)
        for name, place in TOTALS.items():
            self._want(place, name, meter.end)

    def _want(self, place: str, stage: str, count: Callable[..., Any]) -> None:
        module, _, name = place.partition(":")
        self._wanted.setdefault(module, []).append((name, stage, count))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder: found by the others, and loaded by us."""
        if name not in self._wanted and name not in self._stages:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                self._take_over(name, spec.loader)
                return spec
        return None

    def _take_over(self, name: str, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if stage := self._stages.get(name):
                self._meter.call(stage, load, module)
            else:
                load(module)
            for place, stage, count in self._wanted.pop(name, ()):
                _wrap(module, place, stage, count)

        loader.exec_module = exec_module


def _wrap(module: ModuleType, place: str, stage: str, count: Callable[..., Any]) -> None:
    *parents, name = place.split(".")
    owner: Any = module
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return count(stage, function, *args, **kwargs)

    setattr(owner, name, wrapped)


def read(path: str) -> dict[str, float]:
    """What was counted, in milliseconds by name."""
    with open(path, "rb") as file:
        data = file.read()
    return {name: _CELL.unpack_from(data, at * _CELL.size)[0] / 1e6 for at, name in enumerate(NAMES)}


def create(path: str) -> None:
    """Make a file in which nothing is counted yet."""
    with open(path, "wb") as file:
        file.write(bytes(len(NAMES) * _CELL.size))


def install(path: str) -> None:
    """Count in this process and in those that it forks."""
    sys.meta_path.insert(0, _Importer(Meter(path)))
