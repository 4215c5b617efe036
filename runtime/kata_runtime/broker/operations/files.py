"""Operations on the files of a sandbox: what is made, mounted and shared for its containers."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.context import Context

MAX_MOUNTS = 16
"""Mounts of one request: what containerd's snapshotters stack for a root file system."""


@operation(ALWAYS, bundle=checks.path)
def open_spec(context: Context, *, bundle: str) -> Reply:
    """Open the config.json of a container of this sandbox; what it names may then be shared."""
    return Reply(context.directory.origin.give_read_only(context.authorization.open_spec(bundle)))


@operation(ALWAYS, path=checks.path)
def make_directory(context: Context, *, path: str) -> Reply:
    """Make a directory below the shared directory, with its parents; one that exists is left as it is."""
    context.files.make_directory(path)
    return Reply()


@operation(ALWAYS, target=checks.path, mounts=checks.list_of(checks.mount, 1, MAX_MOUNTS))
def mount(context: Context, *, target: str, mounts: list[list[Any]]) -> Reply:
    """Mount several, the later on top, on a directory that is made if missing; all or none."""
    context.files.mount(target, mounts)
    return Reply()


@operation(BEFORE_SEAL, target=checks.path)
def show_root(context: Context, *, target: str) -> Reply:
    """Make what `mount` or `bind` has put there the root of the pod's init, whose pid containerd is told."""
    context.files.show(target, context.pod.init)
    return Reply()


@operation(ALWAYS, source=checks.path, target=checks.path, readonly=checks.flag, recursive=checks.flag)
def bind(context: Context, *, source: str, target: str, readonly: bool, recursive: bool) -> Reply:
    """Share a file or directory of the host; the target is made to match it."""
    context.files.bind(source, target, readonly=readonly, recursive=recursive)
    return Reply()


@operation(
    ALWAYS, source=checks.path, readonly=checks.flag, recursive=checks.flag, readonly_below=checks.flag
)
def share(context: Context, *, source: str, readonly: bool, recursive: bool, readonly_below: bool) -> Reply:
    """Share a file or directory of the host as a volume of the sandbox, once for all that name it.

    Answers its place below the shared directory, whether the source is read-only by itself, and the paths in
    it at which something is mounted that came along; of a block device, which is not shared and may be
    plugged in, no place but its numbers, mode and owner.
    """
    shared = context.volumes.share(
        source, readonly=readonly, recursive=recursive, readonly_below=readonly_below
    )
    return Reply(**shared.to_json())


@operation(ALWAYS, source=checks.path)
def find_memory(context: Context, *, source: str) -> Reply:
    """Say whether a source is memory that the host has made for the pod: the guest has its own instead.

    Answers None where it is not; else the file system's kind, device and size, the mode, user and group of
    its top, the flags of its mount, and the source's path in it.
    """
    return Reply(memory=context.volumes.find_memory(source))


@operation(ALWAYS, place=checks.shared_place)
def unshare(context: Context, *, place: str) -> Reply:
    """Undo one `share`, by the place that it answered."""
    context.volumes.unshare(place)
    return Reply()


@operation(ALWAYS, target=checks.path)
def unmount(context: Context, *, target: str) -> Reply:
    """Undo `mount` or `bind`, all that is stacked there. The target stays."""
    context.files.unmount(target)
    return Reply()


@operation(ALWAYS, path=checks.path)
def remove(context: Context, *, path: str) -> Reply:
    """Remove an empty directory, or a file, that was made by `make_directory`, `mount` or `bind`."""
    context.files.remove(path)
    return Reply()
