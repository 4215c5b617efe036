"""What may still be asked for once the shim is sealed: a guest may own it from then on.

Until then the guest has not run an instruction, so what the shim asks for comes from containerd and from the
operator, and is learned here. Afterwards a request must fit what was learned:

    open_in_image    nothing more: the files of a unikernel are open by then
    prepare, spawn   nothing more, and no other guest
    bind             a source that the config.json of one of this sandbox's containers names
    mount            what lies among containerd's snapshots, or beside what was mounted before the seal
    open_fifo        below containerd's state directory or such a container's bundle, or beside a FIFO that
                     was opened before the seal
    open_log         beside a log that was opened before the seal
    make_image       of what is mounted for the sandbox, by a program that the broker names
    open_image       an image whose name, the hash of its content, is known

Whose config.json it is, is what containerd wrote into the bundle, which the shim cannot change: see
`belongs_to`. What is left of danger is in docs/threat-model.md.
"""

from __future__ import annotations

import json
import os

from kata_runtime import syscalls
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.identity import MAX_SPEC, SANDBOX_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

BEFORE_THE_SEAL = (
    *("prepare", "spawn", "announce_seal", "register_guest"),
    *("make_jail", "open_in_image", "filters_effective"),
)


class Authorization:
    """What one sandbox may have of the host. bundle: of the sandbox; sandbox: its id."""

    def __init__(self, bundle: str, sandbox: str) -> None:
        self._bundle = os.path.realpath(bundle)
        self._sandbox = sandbox
        self._sources: set[str] = set()
        self._snapshots = _snapshot_roots(self._bundle)
        self._streams = _state_root(self._bundle)
        self._logs: set[str] = set()
        self.sealed = False

    def seal(self) -> None:
        """Learn no more: from here on the shim may be the guest's."""
        self.sealed = True

    # -- what containerd wrote -----------------------------------------------------------------------------

    def open_spec(self, bundle: str) -> int:
        """Open the config.json of a container of this sandbox, and admit the sources that it names.

        Raises:
            RequestFailedError: it cannot be read. RequestRefusedError: it is another sandbox's.
        """
        path = os.path.join(bundle, "config.json")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RequestFailedError(f"cannot read {path}: {error.strerror}", error.errno or 0) from None
        try:
            spec = _parse(os.pread(fd, MAX_SPEC, 0))
            if not self._is_ours(bundle, spec):
                raise RequestRefusedError(f"{path} is not of a container of the sandbox {self._sandbox}")
            self._sources.update(_sources(spec, bundle))
            self._streams.add(os.path.realpath(bundle))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_ours(self, bundle: str, spec: dict[str, Any]) -> bool:
        return not self.sealed or os.path.realpath(bundle) == self._bundle or self._names_us(bundle, spec)

    def _names_us(self, bundle: str, spec: dict[str, Any]) -> bool:
        """Whether the annotations of the CRI, or containerd's file `sandbox`, name this sandbox."""
        annotations = spec.get("annotations")
        if isinstance(annotations, dict) and any(annotations.get(k) == self._sandbox for k in SANDBOX_KEYS):
            return True
        try:
            fd = os.open(
                os.path.join(bundle, "sandbox"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            return False
        try:
            return os.read(fd, 4096).decode("utf-8", "replace").strip() == self._sandbox
        finally:
            os.close(fd)

    # -- what the shim asks for ----------------------------------------------------------------------------

    def check_operation(self, op: str) -> None:
        """Refuse what is not done once the shim is sealed. Raises RequestRefusedError."""
        if self.sealed and op in BEFORE_THE_SEAL:
            raise RequestRefusedError(f"{op}: the sandbox is sealed, and this is done before that")

    def check_bind(self, source: str) -> None:
        """Raises RequestRefusedError."""
        if self.sealed and not {source, source.rstrip("/")} & self._sources:
            raise RequestRefusedError(
                f"cannot share {source}: no config.json of the sandbox {self._sandbox} names it"
            )

    def finder(self, paths: Iterable[str]) -> Callable[[str], int] | None:
        """How the paths of a mount are found: None, by their names, before the seal.

        Afterwards each is opened below a known directory without following a link. Guests write to snapshots:
        what looks like a layer may be a link by the time that it is mounted.
        """
        if self.sealed:
            return self._find
        for path in paths:
            self._learn(self._snapshots, _scope(path))
        return None

    def _find(self, path: str) -> int:
        """Open (O_PATH) what lies among containerd's snapshots. Raises OSError, RequestRefusedError."""
        for directory in self._snapshots:
            if path.startswith(directory + "/"):
                holder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return syscalls.open_beneath(holder, path[len(directory) + 1 :])
                finally:
                    os.close(holder)
        raise RequestRefusedError(
            f"cannot mount {path}: the sandbox is sealed, and it is not among containerd's snapshots"
        )

    def check_fifo(self, path: str) -> None:
        """Raises RequestRefusedError."""
        beside = os.path.dirname(os.path.dirname(path))
        self._check_path(path, self._streams, beside, "open a FIFO", "the streams of containerd")

    def check_log(self, path: str) -> None:
        """Raises RequestRefusedError."""
        self._check_path(path, self._logs, os.path.dirname(path), "open a log", "this sandbox's logs")

    def _learn(self, known: set[str], directory: str) -> None:
        """Know a directory, by the name that containerd uses and by its real one; never the root."""
        known.update({directory, os.path.realpath(directory)} - {"/", ""})

    def _check_path(self, path: str, known: set[str], scope: str, deed: str, what: str) -> None:
        """Admit a path below a known directory; before the seal, know the directory it lies in."""
        if not self.sealed:
            self._learn(known, scope)
            return
        real = os.path.realpath(path)
        if not any(real.startswith(directory + "/") for directory in known):
            raise RequestRefusedError(
                f"cannot {deed} at {path}: the sandbox is sealed, and it is not among {what}"
            )


def _parse(raw: bytes) -> dict[str, Any]:
    """The specification as far as it can be read: the shim says what is wrong with it."""
    try:
        spec = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _sources(spec: dict[str, Any], bundle: str) -> set[str]:
    """The paths of the host that a specification names: its root, and its mounts' sources."""
    root, mounts = spec.get("root"), spec.get("mounts")
    path = root.get("path") if isinstance(root, dict) else None
    found = {os.path.join(bundle, path)} if isinstance(path, str) else set()
    for mount in mounts if isinstance(mounts, list) else ():
        source = mount.get("source") if isinstance(mount, dict) else None
        if isinstance(source, str):
            found.add(source)
    return found


def _scope(path: str) -> str:
    """Where a snapshotter keeps what lies beside a path: its own directory, where containerd named it."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if part.startswith("io.containerd.snapshotter."):
            return "/".join(parts[: index + 1])
    return os.path.dirname(path)


def _snapshot_roots(bundle: str) -> set[str]:
    """The directories of containerd's own snapshotters, beside the bundle's link `work`.

    Source: containerd, core/runtime/v2/bundle.go: work -> ROOT/io.containerd.runtime.v2.task/NAMESPACE/ID.
    """
    try:
        root = _containerd_directory(os.readlink(os.path.join(bundle, "work")))
        names = os.listdir(root) if root else []
    except OSError:
        return set()
    paths = [os.path.join(root, name) for name in names if name.startswith("io.containerd.snapshotter.")]
    return {*paths, *map(os.path.realpath, paths)}


def _state_root(bundle: str) -> set[str]:
    """containerd's state directory, which holds the bundles and the FIFOs."""
    root = _containerd_directory(bundle)
    return {root} if root else set()


def _containerd_directory(path: str) -> str:
    """DIRECTORY of DIRECTORY/io.containerd.*/NAMESPACE/ID, or nothing."""
    plugin = os.path.dirname(os.path.dirname(path))
    root = os.path.dirname(plugin)
    return root if os.path.basename(plugin).startswith("io.containerd.") and root != "/" else ""
