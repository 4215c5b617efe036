"""containerd's configuration with our runtime handlers in it, or without them again. Text to text.

The handlers are one block of text between two comments, at the end of the file: all that the operator has
written stays as it is, and taking the block out gives back the file. The tables that are in the block must be
nowhere else, and the outcome must read as the file with those tables and nothing else changed.

Source: containerd, docs/man/containerd-config.toml.5.md and docs/cri/config.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli

from kata_configuration.judge.containerd import PLUGINS, TYPE

NEW_VERSION = 2
"""Of a file that we make: containerd 1.6 to 2.x read it."""

BEGIN = "# >>> kata-ctl containerd configure: written by it, and taken out by its --remove >>>"
END = "# <<< kata-ctl containerd configure <<<"
_BLOCK = re.compile(rf"\n?^{re.escape(BEGIN)}$.*?^{re.escape(END)}$\n?", re.MULTILINE | re.DOTALL)
_HANDLER = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class ContainerdConfigError(Exception):
    """The file cannot be changed as asked; the message says why, and what to do."""


def add(text: str, handlers: Mapping[str, Path]) -> str:
    """The file with these handlers, and no others of ours.

    text: of the file; empty for none. handlers: the path of this runtime's configuration by the name of each.

    Raises:
        ContainerdConfigError: it is not TOML, of a version without such plugins, or has the handlers already.
    """
    for name in handlers:
        if not _HANDLER.fullmatch(name):
            raise ContainerdConfigError(f"{name!r} cannot be a handler: it is a DNS label, such as kata-qemu")
    theirs = remove(text)
    before = _parse(theirs)
    version = before.get("version", 1) if before else NEW_VERSION
    plugin = PLUGINS.get(version) if isinstance(version, int) else None
    if plugin is None:
        raise ContainerdConfigError(
            f"it is of version {version}, and handlers go into versions 2 to {max(PLUGINS)}: "
            "`containerd config migrate` prints it in a newer one"
        )
    _check_enabled(before)
    root = "" if before else f"version = {NEW_VERSION}\n\n"
    block = f"{BEGIN}\n{root}" + "\n".join(_tables(plugin, *one) for one in handlers.items()) + f"{END}\n"
    separator = "" if not theirs else "\n" if theirs.endswith("\n") else "\n\n"
    after = f"{theirs}{separator}{block}"
    _check_added(before, after, block, plugin, handlers)
    return after


def remove(text: str) -> str:
    """The file without our block; as it is where there is none."""
    return _BLOCK.sub("", text)


def sets_runtimes(text: str) -> bool:
    """Whether a file that another imports has the plugin's tables, in whose place it puts its own."""
    plugins = _parse(text).get("plugins")
    return isinstance(plugins, dict) and any(plugin in plugins for plugin in PLUGINS.values())


def imports(text: str) -> list[str]:
    """The globs of the files that a file imports."""
    found = _parse(text).get("imports", [])
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ContainerdConfigError(f"it is not TOML: {error}") from None


def _check_enabled(before: Mapping[str, Any]) -> None:
    for name in before.get("disabled_plugins", ()):
        if name in ("cri", *PLUGINS.values()):
            raise ContainerdConfigError(
                f'disabled_plugins has "{name}", without which containerd serves no kubelet: take it out'
            )


def _check_added(
    before: dict[str, Any], after: str, block: str, plugin: str, handlers: Mapping[str, Path]
) -> None:
    """Raise ContainerdConfigError unless the outcome is what was there and the block, and nothing twice."""
    runtimes = _at(before, "plugins", plugin, "containerd", "runtimes")
    if twice := sorted(handlers.keys() & runtimes.keys()):
        raise ContainerdConfigError(
            f"it has a runtime {twice[0]} that this command did not write: remove its tables, or give the "
            "handler another name"
        )
    try:
        merged = tomli.loads(after)
    except tomli.TOMLDecodeError as error:
        raise ContainerdConfigError(
            f"nothing can be added to it, because it has plugins or {plugin} in braces: write these as "
            f"tables with a heading in brackets ({error})"
        ) from None
    expected = _merged(before, tomli.loads(block))
    if merged != expected:
        raise ContainerdConfigError(
            "what it would say with the handlers is not what it says now and they say"
        )


def _at(table: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    found: Any = table
    for key in keys:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    tables = {key for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **{key: _merged(one[key], other[key]) for key in tables}}


def _tables(plugin: str, name: str, configuration: Path) -> str:
    """The tables of one handler."""
    head = f'plugins."{plugin}".containerd.runtimes.{name}'
    return (
        f"[{head}]\n"
        f'  runtime_type = "{TYPE}"\n'
        "  privileged_without_host_devices = true\n"
        '  pod_annotations = ["io.katacontainers.*"]\n'
        f"  [{head}.options]\n"
        f"    ConfigPath = {json.dumps(str(configuration))}\n"
    )
