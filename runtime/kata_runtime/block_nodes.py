"""The block devices of the host that an OCI specification gives to its container.

The shim plugs them in, and the broker lets it have those and no others: both read the specification here. The
broker reads one before anybody has checked it. Standard library only, and little of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    # Major and minor number, as a specification has them.
    Numbers = tuple[int | None, int | None]

BLOCK = "b"
_BLOCK_TYPES = (BLOCK, "a", None, "")
_ANY = -1


class BlockNode:
    """A node of a container that is a block device of the host.

    path: in the container. device: "MAJOR:MINOR" on the host. write: whether the container may write to it.
    mount: the index of the mount that names it; None: it is one of linux.devices. mode, user, group: of a
    mounted node. found_by: by what the guest knows the disk, once it is plugged in.
    """

    __slots__ = ("device", "found_by", "group", "mode", "mount", "path", "user", "write")

    def __init__(
        self,
        path: str,
        device: str,
        *,
        write: bool,
        mount: int | None = None,
        mode: int = 0,
        user: int = 0,
        group: int = 0,
    ) -> None:
        self.path = path
        self.device = device
        self.write = write
        self.mount = mount
        self.mode = mode
        self.user = user
        self.group = group
        self.found_by = ""

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor number on the host."""
        major, _, minor = self.device.partition(":")
        return int(major), int(minor)


def block_nodes(spec: dict[str, Any]) -> Iterator[BlockNode]:
    """Those of linux.devices; what is malformed is left out."""
    rules = rules_of(spec)
    for node in _objects(_object(spec.get("linux")).get("devices")):
        path, major, minor = node.get("path"), _number(node.get("major")), _number(node.get("minor"))
        if node.get("type") == BLOCK and isinstance(path, str) and major >= 0 and minor >= 0:
            device = f"{major}:{minor}"
            yield BlockNode(path, device, write="w" in access(rules, device))


def rules_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules of a specification that say which devices its container may open."""
    return _objects(_object(_object(spec.get("linux")).get("resources")).get("devices"))


def devices_of(rules: list[dict[str, Any]]) -> Iterator[str]:
    """The block devices, "MAJOR:MINOR", that rules allow by their number."""
    for rule in rules:
        major, minor = _number(rule.get("major")), _number(rule.get("minor"))
        if rule.get("allow") is True and rule.get("type") in _BLOCK_TYPES and major >= 0 and minor >= 0:
            yield f"{major}:{minor}"


def access(rules: list[dict[str, Any]], device: str) -> set[str]:
    """What a container may do with a block device, of "r", "w" and "m": the later rules win."""
    major, minor = map(int, device.split(":"))
    allowed: set[str] = set()
    for rule in rules:
        applies = rule.get("type") in _BLOCK_TYPES and all(
            wanted in (None, _ANY, number)
            for wanted, number in ((rule.get("major"), major), (rule.get("minor"), minor))
        )
        letters = set(str(rule.get("access") or "rwm"))
        if applies:
            allowed = allowed | letters if rule.get("allow") is True else allowed - letters
    return allowed


def _number(value: Any) -> int:
    """A major or minor number, 20 bits at most; -1 for what is none."""
    return value if type(value) is int and 0 <= value < 1 << 20 else _ANY


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [_object(entry) for entry in value] if isinstance(value, list) else []
