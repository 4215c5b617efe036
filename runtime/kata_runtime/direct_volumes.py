"""Direct-assigned volumes: a directory of the host that stands for a block device, which the guest mounts.

A CSI driver makes the device and registers it under the path that the kubelet gives to the pod, in a file of
root's below ROOT; nothing is mounted on the host. Source of the format: Kata Containers, "Direct Block Device
Assignment Design", and its commands `direct-volume add` and `remove`.

The broker reads these files; standard library only, and little of it.
"""

from __future__ import annotations

import base64
import json
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SYSTEM = "/run"
ROOT = f"{SYSTEM}/kata-containers/shared/direct-volumes"
FILE = "mountInfo.json"
LONGEST = 1 << 16
"""Bytes of a registration."""

FILE_SYSTEMS = ("ext4", "xfs")
"""Those that the guest's kernel has."""
VOLUME_TYPES = ("directvol", "block")
"""What upstream's runtimes call a volume that is a block device."""
POLICIES = {"": False, "Always": False, "OnRootMismatch": True}
"""fsGroupChangePolicy: whether a volume whose top fits is left as it is."""

_KEYS = frozenset({"volume-type", "device", "fstype", "metadata", "options"})
_MAX_OPTIONS = 32
_MAX_NAME = 255
_NO_GROUP = (1 << 32) - 1
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectVolumeError(ValueError):
    """A registration that cannot be used; a sentence."""


class DirectVolume:
    """A registered volume.

    device: path of the block device. fstype, options: how the guest mounts it. group: the pod's fsGroup, or
    None; on_mismatch: whether a volume whose top has it is left as it is.
    """

    __slots__ = ("device", "fstype", "group", "on_mismatch", "options")

    def __init__(
        self, device: str, fstype: str, options: list[str], group: int | None, *, on_mismatch: bool
    ) -> None:
        self.device = device
        self.fstype = fstype
        self.options = options
        self.group = group
        self.on_mismatch = on_mismatch

    @property
    def readonly(self) -> bool:
        """Whether its registration says so."""
        return "ro" in self.options


def directory_of(volume: str) -> str:
    """Where the volume of a path is registered. Raises DirectVolumeError: the path is too long for a name."""
    name = base64.urlsafe_b64encode(os.fsencode(volume)).decode()
    if not volume.startswith("/") or len(name) > _MAX_NAME:
        raise DirectVolumeError(f"{volume!r} is no absolute path of at most {_MAX_NAME // 4 * 3} bytes")
    return os.path.join(ROOT, name)


def find(volume: str) -> tuple[DirectVolume, os.stat_result] | None:
    """The volume that is registered for a path of the host, and the file that says so; None for other paths.

    Raises:
        DirectVolumeError: there is one, and it cannot be used.
    """
    try:
        path = os.path.join(directory_of(volume), FILE)
    except DirectVolumeError:
        return None
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DirectVolumeError(f"cannot read the registration of {volume}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        facts, content = os.fstat(descriptor), file.read(LONGEST + 1)
    return parse(content, f"the registration of {volume}, {path},"), facts


def registered() -> list[str]:
    """The paths that are registered, whatever their registrations say. Raises OSError."""
    try:
        names = os.listdir(ROOT)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            found.append(os.fsdecode(base64.b64decode(name, b"-_", validate=True)))
        except ValueError:
            continue  # no name that is looked for
    return found


def _open(path: str) -> int:
    """Open a file that root alone may write or replace: a registration is for the path that it is found by.

    Each directory on the way is looked at, from the system's own on.

    Raises:
        OSError: it cannot be opened, or there is a link on the way. DirectVolumeError: others may write it.
    """
    place, done = os.open(SYSTEM, _DIRECTORY), SYSTEM
    for name in path.removeprefix(f"{SYSTEM}/").split("/"):
        done += f"/{name}"
        try:
            below = os.open(name, _FILE if done == path else _DIRECTORY, dir_fd=place)
        finally:
            os.close(place)
        place = below
        try:
            _check_writers(os.fstat(place), done)
        except BaseException:
            os.close(place)
            raise
    return place


def _check_writers(facts: os.stat_result, path: str) -> None:
    """Raises DirectVolumeError."""
    directory = stat.S_ISDIR(facts.st_mode)
    # In a sticky directory only its owner replaces a file.
    others = facts.st_mode & 0o022 and not (directory and facts.st_mode & stat.S_ISVTX)
    if facts.st_uid != 0 or others or not (directory or stat.S_ISREG(facts.st_mode)):
        what = "directory" if directory else "file"
        raise DirectVolumeError(
            f"{path} is not a {what} that root alone writes to: look at what is there, and give it to root "
            "with the mode 0700"
        )


def parse(content: bytes, what: str) -> DirectVolume:
    """Check a registration. what: its name for sentences. Raises DirectVolumeError."""
    try:
        document = json.loads(content) if len(content) <= LONGEST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DirectVolumeError(f"{what} is no JSON object of at most {LONGEST} bytes")
    if unknown := sorted(document.keys() - _KEYS):
        raise DirectVolumeError(f"{what} has the key {unknown[0][:40]!r}, which means nothing here")
    _one_of(document, "volume-type", VOLUME_TYPES, what)
    fstype = _one_of(document, "fstype", FILE_SYSTEMS, what)
    device, options = document.get("device"), document.get("options") or []
    if not isinstance(device, str) or not device.startswith("/dev/") or not _is_path(device):
        raise DirectVolumeError(f"{what} has the device {str(device)[:100]!r}, which is no path below /dev")
    if (
        not isinstance(options, list)
        or len(options) > _MAX_OPTIONS
        or not all(isinstance(option, str) and _is_option(option) for option in options)
    ):
        raise DirectVolumeError(
            f"{what} has options that are no list of at most {_MAX_OPTIONS} mount options"
        )
    group, on_mismatch = _group(document.get("metadata") or {}, what)
    return DirectVolume(device, fstype, options, group, on_mismatch=on_mismatch)


def _one_of(document: dict[str, Any], key: str, allowed: tuple[str, ...], what: str) -> str:
    value = document.get(key)
    if value not in allowed:
        raise DirectVolumeError(f"{what} has the {key} {str(value)[:40]!r}; there are {', '.join(allowed)}")
    return str(value)


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_option(option: str) -> bool:
    return option.isascii() and option.isprintable() and 0 < len(option) <= _MAX_NAME and "," not in option


def _group(metadata: object, what: str) -> tuple[int | None, bool]:
    """fsGroup and fsGroupChangePolicy, as upstream's metadata have them: text."""
    wrong = f"{what} has metadata that are no fsGroup and fsGroupChangePolicy"
    if not isinstance(metadata, dict):
        raise DirectVolumeError(wrong)
    group = metadata.get("fsGroup")
    policy = metadata.get("fsGroupChangePolicy", "")
    if not isinstance(policy, str) or policy not in POLICIES:
        raise DirectVolumeError(wrong)
    if group is None:
        return None, POLICIES[policy]
    if not isinstance(group, str) or not group.isdecimal() or not group.isascii() or len(group) > 10:
        raise DirectVolumeError(wrong)
    if int(group) >= _NO_GROUP:
        raise DirectVolumeError(wrong)
    return int(group), POLICIES[policy]
