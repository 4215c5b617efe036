"""containerd's own configuration, as far as it decides what reaches this runtime.

Judged are the runtime handlers of its CRI plugin that run this runtime, or are named as if they did. Source:
containerd, docs/cri/config.md and internal/cri/config/config.go; release 1.6 for version 2 of the file, 2.0
for version 3, 2.3 for version 4.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, quoted
from kata_configuration.judge import snapshotter
from kata_configuration.suggestions import closest, unmistakable

TYPE = "io.containerd.kata.v2"
TYPES = (TYPE, "io.containerd.kata")
OPTIONS_TYPE = "runtimeoptions.v1.Options"

OLD_PLUGIN, PLUGIN = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
PLUGINS = {2: OLD_PLUGIN, 3: PLUGIN, 4: PLUGIN}
"""The plugin with the runtimes, by the version of the file."""

KEYS = (
    *("runtime_type", "runtime_path", "runtime_engine", "runtime_root", "options", "base_runtime_spec"),
    *("pod_annotations", "container_annotations", "privileged_without_host_devices", "io_type"),
    *("privileged_without_host_devices_all_devices_allowed", "cni_conf_dir", "cni_max_conf_num"),
    *("snapshotter", "sandboxer", "sandbox_mode", "cgroup_writable"),
)
"""Of a runtime's table. containerd passes over others without a word."""

OPTIONS = ("ConfigPath", "ConfigBody", "TypeUrl")

ANNOTATION = "io.katacontainers.config.hypervisor.default_memory"
"""One of ours, to try a pattern with."""

PATTERN = "io.katacontainers.*"


class Handled(NamedTuple):
    """What the configuration that a handler names comes to. annotations: what it allows pods to set."""

    hypervisor: str
    shares_files: bool
    annotations: tuple[str, ...]


Look = Callable[[str], Handled | None]
"""Loads the configuration at a path; None where it has faults or is missing."""


def is_containerds(tree: Mapping[str, Any]) -> bool:
    """Whether a file is containerd's: its version is a number at the top, or it has plugins."""
    return type(tree.get("version")) is int or isinstance(tree.get("plugins"), dict)


def judge(tree: Mapping[str, Any], look: Look | None) -> Iterator[Finding]:
    """Yield the findings about this runtime's handlers. look: None where this host is not looked at."""
    version = tree.get("version", 1)
    if not isinstance(version, int) or version not in PLUGINS:
        message = f"is {quoted(version)}, of which the runtimes are not known here"
        hint = 'write version = 2, or 3 for containerd 2 ("containerd config migrate" converts it)'
        yield Finding(Code.HANDLER_UNREAD, ("version",), message, hint)
        return
    yield from _elsewhere(tree, version)
    path: KeyPath = ("plugins", PLUGINS[version], "containerd", "runtimes")
    runtimes = _table(tree, path)
    ours = [name for name, table in runtimes.items() if isinstance(table, dict) and _is_ours(name, table)]
    if not ours:
        hint = (
            f'add [plugins.{quoted(PLUGINS[version])}.containerd.runtimes.kata] with runtime_type = "{TYPE}"'
        )
        message = "no runtime is of this runtime's type"
        if tree.get("imports"):
            message += " in this file, and what it imports is not looked at"
        yield Finding(Code.HANDLER_ABSENT, path, message, hint, on_key=True)
    for name in ours:
        yield from _handler((*path, name), runtimes[name], look)
        configured = _configuration(runtimes[name], look)
        if configured is not None and not configured.shares_files:
            yield from snapshotter.judge_fit(tree, version, (*path, name), configured.hypervisor)
    if ours:
        yield from snapshotter.judge_names(tree, version, path, ours)


def _table(tree: Mapping[str, Any], path: KeyPath) -> Mapping[str, Any]:
    """The table at a path; empty where there is none."""
    found: Any = tree
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _is_ours(name: str, table: Mapping[str, Any]) -> bool:
    kind = str(table.get("runtime_type", ""))
    return "kata" in name.lower() or "kata" in kind.lower()


def _elsewhere(tree: Mapping[str, Any], version: int) -> Iterator[Finding]:
    """Find runtimes in the plugin of the file's other version, which containerd passes over."""
    for plugin, other in ((OLD_PLUGIN, 2), (PLUGIN, 3)):
        path: KeyPath = ("plugins", plugin, "containerd", "runtimes")
        if plugin != PLUGINS[version] and _table(tree, path):
            message = f"is not read: a file of version {version} has its runtimes in {PLUGINS[version]}"
            hint = f"rename the plugin to {quoted(PLUGINS[version])}, or write version = {other}"
            yield Finding(Code.HANDLER_UNREAD, path, message, hint, on_key=True)


def _handler(path: KeyPath, table: Mapping[str, Any], look: Look | None) -> Iterator[Finding]:
    """Judge one runtime's table."""
    kind = table.get("runtime_type", "")
    if kind not in TYPES:
        meant = closest(str(kind), TYPES) or TYPE
        message = f"is {quoted(kind)}: pods of {quoted(str(path[-1]))} are not run by this runtime"
        fix = Fix(value=meant) if "runtime_type" in table else None
        yield Finding(Code.HANDLER_TYPE, (*path, "runtime_type"), message, f'write "{meant}"', fix=fix)
    for key in table:
        if key not in KEYS:
            message = "is no key of a runtime, and containerd passes over it without a word"
            yield _misspelled((*path, key), table, KEYS, message, "remove it")
    yield from _options((*path, "options"), table.get("options", {}), look)
    yield from _annotations(path, table, look)
    if table.get("privileged_without_host_devices") is not True:
        message = "is not true: containerd gives a privileged container a node for each device of the host"
        yield Finding(
            Code.HANDLER_DEVICES,
            (*path, "privileged_without_host_devices"),
            message,
            "write privileged_without_host_devices = true",
        )


def _misspelled(
    path: KeyPath, table: Mapping[str, Any], known: Sequence[str], message: str, otherwise: str
) -> Finding:
    """A key that is unknown, with the one that is meant. otherwise: what to do where none resembles it."""
    key = str(path[-1])
    meant = closest(key, known)
    right = meant if meant and meant not in table and unmistakable(key, known) else None
    hint = f"did you mean {meant}?" if meant else otherwise
    fix = Fix(rename=right) if right else None
    return Finding(Code.HANDLER_UNREAD, path, message, hint, on_key=True, fix=fix)


def _options(path: KeyPath, options: object, look: Look | None) -> Iterator[Finding]:
    if not isinstance(options, dict):
        yield Finding(Code.HANDLER_UNREAD, path, "is no table, and containerd refuses it", "write a table")
        return
    for key in options:
        if key not in OPTIONS:
            message = f"is no option of {OPTIONS_TYPE}, and has no effect"
            yield _misspelled((*path, key), options, OPTIONS, message, "remove it: it is an option of runc's")
    if options.get("ConfigBody"):
        message = "is not read by this runtime, which reads a file"
        hint = "write the configuration into a file, and name it in ConfigPath"
        yield Finding(Code.HANDLER_UNREAD, (*path, "ConfigBody"), message, hint, on_key=True)
    name = options.get("ConfigPath", "")
    if not name:
        return
    if not isinstance(name, str) or not name.startswith("/"):
        yield Finding(
            Code.HANDLER_PATH,
            (*path, "ConfigPath"),
            f"is {quoted(name)}, which is not an absolute path",
            'begin it with "/"',
        )
    elif look is not None and look(name) is None:
        hint = f"kata-ctl config lint {name} says why"
        message = f"names {quoted(name)}, which cannot be loaded: no pod of this runtime starts"
        yield Finding(Code.HANDLER_PATH, (*path, "ConfigPath"), message, hint)


def _annotations(path: KeyPath, table: Mapping[str, Any], look: Look | None) -> Iterator[Finding]:
    """Find what keeps pods' annotations from the runtime: containerd passes on those that a glob matches."""
    passed = table.get("pod_annotations", [])
    patterns = [item for item in passed if isinstance(item, str)] if isinstance(passed, list) else []
    if any(fnmatch.fnmatchcase(ANNOTATION, pattern) for pattern in patterns):
        return
    configured = _configuration(table, look)
    if patterns or (configured is not None and configured.annotations):
        why = (
            f"matches no annotation such as {ANNOTATION}"
            if patterns
            else "is missing, and enable_annotations of the runtime's configuration allows some"
        )
        yield Finding(Code.HANDLER_ANNOTATIONS, (*path, "pod_annotations"), why, f'write ["{PATTERN}"]')


def _configuration(table: Mapping[str, Any], look: Look | None) -> Handled | None:
    options = table.get("options", {})
    name = options.get("ConfigPath", "") if isinstance(options, dict) else ""
    return look(name) if look is not None and isinstance(name, str) and name.startswith("/") else None
