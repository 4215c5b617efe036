"""Operations on images: files of a container's image, and images made of a root file system."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL, root=checks.path, name=checks.path_in_image, write=checks.flag)
def open_in_image(context: Context, *, root: str, name: str, write: bool) -> Reply:
    """Open a regular file or block device in what was mounted at `root`.

    name: a path in there, which leaves it neither by a link nor by "..".
    """
    return Reply(context.images.open_file(root, name, write=write))


@operation(ALWAYS, root=checks.path)
def make_image(context: Context, *, root: str) -> Reply:
    """Start the program that makes an image of what is mounted at `root`; answers "pid" and its output."""
    pid, output = context.images.make(root)
    return Reply(output, pid=pid)


@operation(ALWAYS, name=checks.sha256)
def open_image(context: Context, *, name: str) -> Reply:
    """Open an image of a root file system, read-only; answers "size" in bytes."""
    descriptor, size = context.images.open(name)
    return Reply(descriptor, size=size)
