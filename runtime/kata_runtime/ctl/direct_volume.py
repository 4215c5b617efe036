"""`kata-ctl direct-volume`: what a CSI driver registers, see `direct_volumes`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from kata_runtime import direct_volumes
from kata_runtime.direct_volumes import DirectVolumeError

_DENIED = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `direct-volume` command."""
    parser = subparsers.add_parser(
        "direct-volume",
        help="register devices that guests mount as volumes",
        description="A directory of the host that is registered stands for a block device: a container that "
        "mounts it gets the file system on the device, which the guest mounts and the host does not.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="register a device for a path, before a container mounts it")
    add.add_argument("--volume-path", required=True, help="the path that containers mount")
    add.add_argument(
        "--mount-info",
        required=True,
        help='JSON: {"volume-type": "block", "device": "/dev/sdf", "fstype": "ext4", "options": [], '
        '"metadata": {"fsGroup": "1000", "fsGroupChangePolicy": "OnRootMismatch"}}',
    )
    add.set_defaults(run=_add)
    remove = commands.add_parser("remove", help="forget a path; containers that have it keep it")
    remove.add_argument("--volume-path", required=True, help="the path that was registered")
    remove.set_defaults(run=_remove)


def _add(arguments: argparse.Namespace) -> int:
    try:
        content = arguments.mount_info.encode("utf-8", "surrogateescape")
        direct_volumes.parse(content, "what is to be registered")
        directory = direct_volumes.directory_of(arguments.volume_path)
        os.umask(0o022)  # those above it are nobody else's either, whatever the CSI driver's is
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _write(os.path.join(directory, direct_volumes.FILE), content)
    except DirectVolumeError as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"cannot register {arguments.volume_path}: {error.filename}: {error.strerror}")
    return 0


def _write(path: str, content: bytes) -> None:
    """Write a file that a reader finds whole, or not at all."""
    draft = f"{path}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _remove(arguments: argparse.Namespace) -> int:
    try:
        shutil.rmtree(direct_volumes.directory_of(arguments.volume_path))
    except DirectVolumeError as error:
        return _refused(str(error))
    except FileNotFoundError:
        return _refused(f"{arguments.volume_path} is not registered")
    except OSError as error:
        return _refused(f"cannot forget {arguments.volume_path}: {error.filename}: {error.strerror}")
    return 0


def _refused(sentence: str) -> int:
    print(f"kata-ctl: {sentence}", file=sys.stderr)
    return _DENIED
