"""The paths of the host that the config.json of a sandbox's containers name, and how each may be shared.

A source is shared as it is named, never with more: read-only where each mount that names it says "ro", what
is mounted below it too where each says "rro", and without that where each says "bind". So a guest that owns
the shim cannot have written to what its pod may only read.

What a source is, is settled before the seal: where links lead by then is remembered. Afterwards no link is
followed, because a guest may write to a directory on the way, where that is shared too; containerd's CRI has
resolved them before it writes a config.json.
"""

from __future__ import annotations

import errno
import os

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from kata_runtime.broker.origin import Find

    # Whether it is read-only, whether what is mounted below it comes along, and whether that is read-only.
    Way = tuple[bool, bool, bool]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class BindSources:
    """The sources of one sandbox. sandbox: its id, for sentences."""

    def __init__(self, sandbox: str) -> None:
        self._sandbox = sandbox
        self._named: dict[str, set[Way]] = {}
        self._real: dict[str, str] = {}

    def learn(self, spec: dict[str, Any], bundle: str, *, sealed: bool) -> None:
        """Take what a specification names: its root, and the sources of its bind mounts."""
        for path, way in _named(spec, bundle):
            self._named.setdefault(path, set()).add(way)
            inside = path.removeprefix(bundle + "/")
            if not sealed:
                self._real.setdefault(path, os.path.realpath(path))
            elif inside != path:  # the bundle is containerd's own, and was reached without a link
                self._real.setdefault(path, os.path.join(os.path.realpath(bundle), inside))

    def finder(self, source: str, *, readonly: bool, recursive: bool, readonly_below: bool) -> Find:
        """After the seal: how a source is found that may be shared like this.

        readonly_below: whether what is mounted below it is read-only too, if it comes along.

        What is returned opens (O_PATH) it. It raises OSError, RequestRefusedError.

        Raises:
            RequestRefusedError: nothing names it, or not like this.
        """
        name = source if source in self._named else source.rstrip("/")
        ways = self._named.get(name)
        if ways is None:
            raise RequestRefusedError(
                f"cannot share {source}: no config.json of the sandbox {self._sandbox} names it"
            )
        if not any(
            readonly >= only_read and recursive <= whole and (not recursive or readonly_below >= below_too)
            for only_read, whole, below_too in ways
        ):
            wanted = "" if readonly else "writable"
            wanted += f" with what is mounted below it{'' if readonly_below else ', writable'}" * recursive
            raise RequestRefusedError(
                f"cannot share {source} {wanted.strip()}: the sandbox is sealed, and no config.json of the "
                f"sandbox {self._sandbox} names it so"
            )
        real = self._real.get(name, name) + "/" * source.endswith("/")
        return lambda _: _open(source, real)


def _open(source: str, real: str) -> int:
    root = os.open("/", _DIRECTORY)
    try:
        return syscalls.open_beneath(root, real.lstrip("/") or ".")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RequestRefusedError(
            f"cannot share {source}: the sandbox is sealed, and a symbolic link is in the way, which a guest "
            "may have made; name the place that it leads to"
        ) from None
    finally:
        os.close(root)


def _named(spec: dict[str, Any], bundle: str) -> Iterator[tuple[str, Way]]:
    root, mounts = spec.get("root"), spec.get("mounts")
    path = root.get("path") if isinstance(root, dict) else None
    if isinstance(path, str):
        yield os.path.join(bundle, path), (False, True, False)
    for mount in mounts if isinstance(mounts, list) else ():
        source = mount.get("source") if isinstance(mount, dict) else None
        if isinstance(source, str) and (how := _way(mount)) is not None:
            yield source, how


def _way(mount: dict[str, Any]) -> Way | None:
    """How a mount names its source; None unless it is a bind mount. As `guest_spec` has it."""
    given = mount.get("options")
    options = [option for option in given if isinstance(option, str)] if isinstance(given, list) else []
    if mount.get("type") != "bind" and not {"bind", "rbind"} & set(options):
        return None
    whole = "rbind" in options or "bind" not in options
    return "ro" in options or "rro" in options, whole, "rro" in options
