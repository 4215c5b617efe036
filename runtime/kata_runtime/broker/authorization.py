"""What may still be asked for once the shim is sealed: a guest may own it from then on.

Until then the guest has not run an instruction, so what the shim asks for comes from containerd and from the
operator, and is learned here. Which operations are allowed at all is in their declarations (`operations`).
What remains must fit what was learned:

    bind             a source that the config.json of one of this sandbox's containers names, and as it does,
                     see `bind_sources`
    open_spec        of a bundle where containerd makes them, see `_Bundles`
    mount            what is like a mount of the first container, see `mount_policy`
    open_fifo        below containerd's state directory, but of the bundles only in this sandbox's, and there
                     not its log; in a directory beside that of a FIFO that was opened before the seal; or
                     anywhere, if it is root's alone and named as containerd's clients do, see `client_fifos`
    open_log         in the directory of a log that was opened before the seal: a new one, or one by the name
                     of a log that the sandbox had before; another file is the host's, or another pod's
    make_image       of what is mounted for the sandbox, by a program that the broker names
    give_device, open_device, show_device
                     a block device that the config.json of one of this sandbox's containers gives, see
                     `block_devices`
    open_image       an image whose name, the hash of its content, is known

Whose config.json it is, is what containerd wrote into the bundle, which the shim cannot change: see
`_names_us`. What is left of danger is in docs/threat-model.md.
"""

from __future__ import annotations

import json
import os

from kata_runtime import syscalls
from kata_runtime.broker.bind_sources import BindSources
from kata_runtime.broker.block_devices import GivenDevices
from kata_runtime.broker.client_fifos import ClientFifos
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.held_directories import HeldDirectories, by_name
from kata_runtime.broker.mount_policy import MountPolicy
from kata_runtime.broker.phase import Phase
from kata_runtime.identity import MAX_SPEC, SANDBOX_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any, Self

    from kata_runtime.broker.held_directories import Opener
    from kata_runtime.broker.origin import Find

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MAX_ID = 4096
_LOG = "log"
_BUNDLES = ("io.containerd.runtime.", "io.containerd.sandbox.")
"""How the directories of containerd's state begin in which the bundles of tasks and sandboxes are."""


class Authorization:
    """What one sandbox may have of the host. bundle: of the sandbox; sandbox: its id."""

    def __init__(self, bundle: str, sandbox: str) -> None:
        self._bundle = os.path.realpath(bundle)
        self._sandbox = sandbox
        self._phase = Phase.LEARNING
        self._sources = BindSources(sandbox)
        # The block devices that may be plugged in.
        self.devices = GivenDevices()
        self._mounts = MountPolicy(_snapshot_roots(self._bundle))
        self._bundles = _Bundles(self._bundle)
        self._streams = HeldDirectories()
        self._client_fifos = ClientFifos()
        self._logs = HeldDirectories()
        self._own_logs: set[str] = set()
        if state := _containerd_directory(self._bundle):
            self._streams.add(state)  # it holds the bundles and the FIFOs

    @property
    def phase(self) -> Phase:
        """Where the sandbox is in its life."""
        return self._phase

    @property
    def block_devices(self) -> Collection[str]:
        """Paths of the block devices that containerd had mounted."""
        return self._mounts.block_devices

    def seal(self) -> None:
        """Learn no more: from here on the shim may be the guest's."""
        self._phase = Phase.SEALED

    @property
    def _sealed(self) -> bool:
        return self._phase is Phase.SEALED

    # -- what containerd wrote -----------------------------------------------------------------------------

    def open_spec(self, bundle: str) -> int:
        """Open the config.json of a container of this sandbox, and authorize the sources that it names.

        Raises:
            RequestFailedError: it cannot be read. RequestRefusedError: it is another sandbox's.
        """
        path = os.path.join(bundle, "config.json")
        try:
            with self._open_bundle(bundle) as directory:
                fd = syscalls.open_beneath(directory.fd, "config.json", _FILE)
                try:
                    facts, spec = os.fstat(fd), _parse(os.pread(fd, MAX_SPEC, 0))
                    ours = self._is_ours(bundle, directory.fd, spec)
                except BaseException:
                    os.close(fd)
                    raise
        except OSError as error:
            raise RequestFailedError(f"cannot read {path}: {error.strerror}", error.errno or 0) from None
        if not ours:
            os.close(fd)
            raise RequestRefusedError(f"{path} is not of a container of the sandbox {self._sandbox}")
        self._sources.learn(spec, bundle, sealed=self._sealed)
        self.devices.learn(spec, bundle, facts)
        self._streams.add(bundle)
        self._bundles.own(bundle)
        return fd

    def _open_bundle(self, bundle: str) -> _Held:
        return self._bundles.open(bundle) if self._sealed else _Held(os.open(bundle, _DIRECTORY))

    def _is_ours(self, bundle: str, directory: int, spec: dict[str, Any]) -> bool:
        if not self._sealed or os.path.realpath(bundle) == self._bundle:
            return True
        return self._names_us(directory, spec)

    def _names_us(self, directory: int, spec: dict[str, Any]) -> bool:
        """Whether the annotations of the CRI, or containerd's file `sandbox`, name this sandbox."""
        annotations = spec.get("annotations")
        if isinstance(annotations, dict) and any(annotations.get(k) == self._sandbox for k in SANDBOX_KEYS):
            return True
        try:
            fd = syscalls.open_beneath(directory, "sandbox", _FILE)
        except OSError:
            return False
        try:
            return os.read(fd, _MAX_ID).decode("utf-8", "replace").strip() == self._sandbox
        finally:
            os.close(fd)

    # -- what the shim asks for ----------------------------------------------------------------------------

    def source_finder(
        self, source: str, *, readonly: bool, recursive: bool, readonly_below: bool
    ) -> Find | None:
        """How the source of a bind is found: None, by its name, before the seal; see `BindSources`.

        Raises:
            RequestRefusedError: the sandbox is sealed, and may not have it, or not like this.
        """
        if self._sealed:
            return self._sources.finder(
                source, readonly=readonly, recursive=recursive, readonly_below=readonly_below
            )
        return None

    def finder(
        self, kind: str, source: str, options: Iterable[str], *, writable: bool = False
    ) -> Callable[[str], int] | None:
        """How the paths of a mount are found: None, by their names, before the seal; see `MountPolicy`.

        writable: whether what is bound can be written.

        Raises:
            RequestRefusedError: an option is not allowed, or the sandbox is sealed and knows no such mount.
        """
        if self._sealed:
            return self._mounts.finder(kind, source, options, writable=writable)
        self._mounts.learn(kind, source, options, writable=writable)
        return None

    def fifo_opener(self, path: str) -> Opener:
        """How the FIFO at a path is opened. Raises RequestRefusedError."""
        if not self._sealed:
            scope = os.path.dirname(os.path.dirname(path))  # each client has a directory for its FIFOs
            self._streams.add(scope, depth=2)
            return by_name(path)
        opener = None
        real = _real_name(path)  # once: a guest may change a link on the way between two looks
        if not (self._bundles.is_others(real) or self._bundles.is_log(real)):
            opener = self._streams.opener(real) or self._client_fifos.opener(real)
        return _allowed(
            opener,
            f"open the FIFO {path}",
            "the streams of containerd, whose clients name theirs ID-stdin, ID-stdout and ID-stderr",
        )

    def log_opener(self, path: str) -> Opener:
        """How the log at a path is opened. Raises RequestRefusedError."""
        if not self._sealed:
            self._logs.add(os.path.dirname(path), depth=1)
            self.own_log(path)
            return by_name(path)
        return _allowed(
            self._logs.opener(path),
            f"open the log {path}",
            "this sandbox's logs; name a FIFO, or a file in the directory of the first container's log",
        )

    def own_log(self, path: str) -> None:
        """The file of this name is a log of the sandbox's from here on."""
        self._own_logs.add(_real_name(path))

    def is_own_log(self, path: str) -> bool:
        """Whether the file of this name is a log that the sandbox has had."""
        return _real_name(path) in self._own_logs


def _real_name(path: str) -> str:
    """A path without links on its way; what it leads to may be one."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _allowed(opener: Opener | None, action: str, what: str) -> Opener:
    if opener is None:
        raise RequestRefusedError(f"cannot {action}: the sandbox is sealed, and it is not among {what}")
    return opener


class _Held:
    """A descriptor of a directory, for as long as something is read of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _Bundles:
    """Where containerd makes the bundles of a sandbox's containers: STATE/io.containerd.*/NAMESPACE/ID.

    A sandbox whose own bundle lies elsewhere is not containerd's; its other bundles lie beside its own. The
    directory is held: what a guest can write to is behind a mount, and nothing below here is reached through
    a link or across one.
    """

    def __init__(self, bundle: str) -> None:
        self._state = _containerd_directory(bundle)
        self._namespace = os.path.basename(os.path.dirname(bundle))
        self._root = self._state or os.path.dirname(bundle)
        self._own = {bundle}
        try:
            self._fd = os.open(self._root, _DIRECTORY)
        except OSError:
            self._fd = -1  # there is no such sandbox: nothing of it is opened later

    def own(self, bundle: str) -> None:
        """A bundle turned out to be of a container of this sandbox."""
        self._own.add(os.path.realpath(bundle))

    def is_others(self, path: str) -> bool:
        """Whether a path lies among containerd's bundles, and in none that is known to be the sandbox's."""
        real = os.path.realpath(os.path.dirname(path))
        inside = real.removeprefix(self._state + "/") if self._state else real
        return inside != real and inside.startswith(_BUNDLES) and real not in self._own

    def is_log(self, path: str) -> bool:
        """Whether a path is containerd's log in a bundle of the sandbox.

        Who reads it takes from containerd what the broker says there of a shim that is owned.
        """
        directory, name = os.path.split(path)
        return name == _LOG and os.path.realpath(directory) in self._own

    def open(self, bundle: str) -> _Held:
        """Open a bundle. Raises RequestRefusedError: it lies elsewhere. OSError."""
        parent = os.path.realpath(os.path.dirname(bundle))
        inside = os.path.relpath(os.path.join(parent, os.path.basename(bundle)), self._root)
        parts = inside.split("/")
        if self._state:
            ours = len(parts) == 3 and parts[0].startswith("io.containerd.") and parts[1] == self._namespace
        else:
            ours = len(parts) == 1
        if not ours or ".." in parts or self._fd < 0:
            raise RequestRefusedError(
                f"cannot read the bundle {bundle}: the sandbox is sealed, and it is not where "
                f"containerd makes the bundles of the namespace {self._namespace}"
            )
        return _Held(syscalls.open_beneath(self._fd, inside, _DIRECTORY, same_mount=True))


def _parse(raw: bytes) -> dict[str, Any]:
    """The specification as far as it can be read: the shim says what is wrong with it."""
    try:
        spec = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return spec if isinstance(spec, dict) else {}


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


def _containerd_directory(path: str) -> str:
    """DIRECTORY of DIRECTORY/io.containerd.*/NAMESPACE/ID, or nothing."""
    plugin = os.path.dirname(os.path.dirname(path))
    root = os.path.dirname(plugin)
    return root if os.path.basename(plugin).startswith("io.containerd.") and root != "/" else ""
