"""Operations on the files of a sandbox: what is made, mounted and shared for its containers."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.context import Context

MAX_MOUNTS = 16
"""Mounts of one request: what containerd's snapshotters stack for a root file system."""


@operation(ALWAYS, bundle=checks.path)
def open_spec(context: Context, *, bundle: str) -> Reply:
    """Open the config.json of a container of this sandbox; what it names may then be shared."""
    return Reply(context.authorization.open_spec(bundle))


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


@operation(ALWAYS, source=checks.path, target=checks.path, readonly=checks.flag, recursive=checks.flag)
def bind(context: Context, *, source: str, target: str, readonly: bool, recursive: bool) -> Reply:
    """Share a file or directory of the host; the target is made to match it."""
    context.files.bind(source, target, readonly=readonly, recursive=recursive)
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


@operation(ALWAYS, path=checks.path)
def discard(context: Context, *, path: str) -> Reply:
    """Remove a socket that a child has made in the sandbox's directory, if it is there."""
    context.directory.discard(path)
    return Reply()
