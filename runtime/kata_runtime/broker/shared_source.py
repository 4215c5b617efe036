"""What the broker answers about the source of a volume."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class SharedSource:
    """A source that is shared, or a block device that may be plugged in.

    place: below the shared directory. readonly: whether it is so by itself. below: the paths in it at which
    something is mounted that came along. device: "MAJOR:MINOR" of a block device, which has no place; mode,
    user, group: of its node. fstype, options: of the file system on it, which the guest mounts as the volume;
    fs_group, on_mismatch: whose it becomes there, see `direct_volumes`.
    """

    __slots__ = (
        *("below", "device", "fs_group", "fstype", "group", "mode", "on_mismatch", "options", "place"),
        *("readonly", "user"),
    )

    def __init__(
        self,
        place: str,
        readonly: bool = False,
        below: Sequence[str] = (),
        device: str = "",
        mode: int = 0,
        user: int = 0,
        group: int = 0,
        fstype: str = "",
        options: Sequence[str] = (),
        fs_group: int | None = None,
        on_mismatch: bool = False,
    ) -> None:
        self.place = place
        self.readonly = readonly
        self.below = below
        self.device = device
        self.mode = mode
        self.user = user
        self.group = group
        self.fstype = fstype
        self.options = options
        self.fs_group = fs_group
        self.on_mismatch = on_mismatch

    def to_json(self) -> dict[str, object]:
        """Its fields as JSON has them."""
        return {name: getattr(self, name) for name in self.__slots__}


def forbidden(source: str, device: str) -> str:
    """The sentence for a mounted block device that the container may not open."""
    return (
        f"{source} is the block device {device} of the host, and no device rule of the container allows it; "
        "give it as a device (--device, volumeMode: Block)"
    )
