"""The snapshotters that containerd's configuration names for this runtime: whether there are such, and fit.

Source: containerd 1.6 to 2.2, plugins/snapshots and plugins/cri/images/plugin.go: a snapshotter that is not
there stops the CRI plugin where it is the default, and each container where a runtime names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, quoted
from kata_configuration.judge.context import lookup
from kata_configuration.suggestions import closest, unmistakable

IMAGES = "io.containerd.cri.v1.images"
"""The plugin that has the default from version 3 of the file on."""

DEFAULT = "overlayfs"
BLOCK = ("devmapper", "blockfile", "erofs")
"""Those whose snapshots are block devices, or files that become some."""

KNOWN = (
    *(DEFAULT, "native", *BLOCK, "btrfs", "zfs", "aufs"),
    *("stargz", "nydus", "fuse-overlayfs"),
)
"""containerd's own, and those that builds of others have in them; any other is one of [proxy_plugins]."""

PLUGIN = "io.containerd.snapshotter.v1."
POOL: KeyPath = ("plugins", f"{PLUGIN}devmapper", "pool_name")


class Absence(NamedTuple):
    """Why containerd has no snapshotter of a name, and what to do. meant: the right name, where one is."""

    message: str
    hint: str
    meant: str | None = None


def default_place(version: int, plugin: str) -> KeyPath:
    """Where a file of a version has the default. plugin: the one with the runtimes."""
    return (
        ("plugins", plugin, "containerd", "snapshotter")
        if version == 2
        else ("plugins", IMAGES, "snapshotter")
    )


def judge_names(
    tree: Mapping[str, Any], version: int, runtimes: KeyPath, ours: Sequence[str]
) -> Iterator[Finding]:
    """Find snapshotters that containerd does not have.

    runtimes: the place of their tables. ours: the names of this runtime's handlers.
    """
    plugin = str(runtimes[1])
    places = [default_place(version, plugin), *((*runtimes, name, "snapshotter") for name in ours)]
    if version > 2:
        places += [("plugins", IMAGES, "runtime_platforms", name, "snapshotter") for name in ours]
        old = default_place(2, plugin)
        if _text(tree, old):
            message = f"is not read: from version 3 on the default is a key of {IMAGES}"
            hint = f"write it in [plugins.{quoted(IMAGES)}]"
            yield Finding(Code.HANDLER_UNREAD, old, message, hint, on_key=True)
    for place in places:
        name = _text(tree, place)
        if name and (absence := _absence(tree, name)):
            fix = Fix(value=absence.meant) if absence.meant else None
            message = f"is {quoted(name)}, {absence.message}"
            yield Finding(Code.HANDLER_NO_SNAPSHOTTER, place, message, absence.hint, fix=fix)


def judge_fit(tree: Mapping[str, Any], version: int, runtime: KeyPath, hypervisor: str) -> Iterator[Finding]:
    """Find a snapshotter of directories beside a hypervisor whose guests see no files of the host."""
    place = (*runtime, "snapshotter")
    name = _text(tree, place) or _text(tree, default_place(version, str(runtime[1]))) or DEFAULT
    if name in BLOCK or _absence(tree, name):
        return
    message = (
        f"is {quoted(name)}: guests of {hypervisor} see no files of the host, so that an image is made of "
        "each container's root file system"
    )
    hint = f"choose one of {', '.join(BLOCK)} where starts must be fast"
    yield Finding(Code.HANDLER_SNAPSHOTTER, place, message, hint)


def _text(tree: Mapping[str, Any], place: KeyPath) -> str:
    """The text at a place; empty where there is none: then the default counts."""
    table = lookup(tree, place[:-1])
    found = table.get(place[-1]) if isinstance(table, dict) else None
    return found if isinstance(found, str) else ""


def _absence(tree: Mapping[str, Any], name: str) -> Absence | None:
    """Why containerd has no snapshotter of that name, as far as this file tells; None where it has one."""
    disabled, elsewhere = tree.get("disabled_plugins"), bool(tree.get("imports"))
    if isinstance(disabled, list) and f"{PLUGIN}{name}" in disabled:
        return Absence("which disabled_plugins has", f'take "{PLUGIN}{name}" out of disabled_plugins')
    if name == "devmapper" and not elsewhere and not lookup(tree, POOL):
        message = "which containerd leaves out where it has no pool"
        return Absence(message, f"write pool_name in [plugins.{quoted(POOL[1])}]")
    proxies = lookup(tree, ("proxy_plugins",))
    known = [*KNOWN, *(_snapshotters(proxies) if isinstance(proxies, dict) else ())]
    meant = closest(name, known)
    if name in known or (elsewhere and meant is None):  # a file that is imported may declare it
        return None
    message = "which is no snapshotter of containerd's and none of [proxy_plugins]"
    only = meant if unmistakable(name, known) else None
    hint = (
        f"did you mean {quoted(meant)}?"
        if meant
        else f"declare it in [proxy_plugins.{name}], or name another"
    )
    return Absence(message, hint, only)


def _snapshotters(proxies: Mapping[str, Any]) -> Iterator[str]:
    """The names of the plugins in other processes that are snapshotters."""
    for name, proxy in proxies.items():
        if isinstance(proxy, dict) and proxy.get("type") == "snapshot":
            yield name
