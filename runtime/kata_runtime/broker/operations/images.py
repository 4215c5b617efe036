"""Operations on disks: files of a container's image, images of a root file system, devices of the host."""

from __future__ import annotations

import os

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


@operation(ALWAYS, disk=checks.name, image=checks.sha256)
def show_image(context: Context, *, disk: str, image: str) -> Reply:
    """Let the VMM see an image of a root file system under a disk's name; answers its "path" there."""
    return Reply(path=context.images.show(disk, image))


@operation(ALWAYS, disk=checks.name)
def hide_image(context: Context, *, disk: str) -> Reply:
    """Take away what `show_image` or `show_device` lets the VMM see; nothing for an unknown disk."""
    context.block_devices.hide(disk)
    context.vmm.hide_disk(disk)
    return Reply()


@operation(ALWAYS, device=checks.device, write=checks.flag)
def give_device(context: Context, *, device: str, write: bool) -> Reply:
    """Open a block device that a config.json gives, for the VMM, which gets it with its next command.

    device: MAJOR:MINOR.
    """
    context.give_device(device, write=write)
    return Reply()


@operation(ALWAYS, disk=checks.name, device=checks.device, write=checks.flag)
def show_device(context: Context, *, disk: str, device: str, write: bool) -> Reply:
    """Let the VMM open a block device that a config.json gives, under a disk's name.

    device: MAJOR:MINOR. Answers the "path" at which the VMM sees it.
    """
    return Reply(path=context.block_devices.show(disk, device, write=write))


@operation(ALWAYS, device=checks.device, write=checks.flag)
def open_device(context: Context, *, device: str, write: bool) -> Reply:
    """Open a block device that a config.json gives, for the machine in the shim; answers "size" in bytes.

    device: MAJOR:MINOR.
    """
    descriptor = context.block_devices.open(device, write=write)
    return Reply(descriptor, size=os.lseek(descriptor, 0, os.SEEK_END))


@operation(ALWAYS, name=checks.sha256)
def open_image(context: Context, *, name: str) -> Reply:
    """Open an image of a root file system, read-only; answers "size" in bytes."""
    descriptor, size = context.images.open(name)
    return Reply(context.directory.origin.give_read_only(descriptor), size=size)
