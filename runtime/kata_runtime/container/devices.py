"""Device nodes and device rules of a specification: which of them mean the same to the guest.

A specification names devices by the host's numbers. Some numbers are the same in every Linux
(Documentation/admin-guide/devices.txt) and name what each kernel has of its own: those the guest gets, of its
own kernel. A block device is plugged in as a disk (`resource.block_devices`), which has a number of its own.
Any other number is another device there, or none: it is refused, and never sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_runtime.block_nodes import BLOCK
from kata_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from kata_runtime.block_nodes import BlockNode, Numbers
    from kata_runtime.container.assigned_disk import AssignedDisk
    from kata_runtime.container.bundle import JsonObject

OWN_OF_EVERY_LINUX = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/kmsg": (1, 11),
    "/dev/tty": (5, 0),
    "/dev/console": (5, 1),
    "/dev/ptmx": (5, 2),
    "/dev/hwrng": (10, 183),
    "/dev/net/tun": (10, 200),
    "/dev/fuse": (10, 229),
    "/dev/kvm": (10, 232),
}
"""Character devices, by the usual path of their node: major and minor number."""

_NUMBERS = frozenset(OWN_OF_EVERY_LINUX.values())
_PSEUDO_TERMINALS = range(136, 144)
_CHARACTER = ("c", "u")
_FIFO = "p"
_ANY = -1


def check(container_id: str, spec: JsonObject) -> None:
    """See that every device of a specification means the same to the guest, or is a block device.

    Raises:
        UnsupportedError: it names one of the host's.
    """
    linux = spec.get("linux") or {}
    nodes = linux.get("devices") or ()
    found = [node for node in nodes if not _is_own(node) and node.get("type") != BLOCK]
    if not found:
        plugged = {(node.get("major"), node.get("minor")) for node in nodes if node.get("type") == BLOCK}
        return check_rules(f"create container {container_id}", linux.get("resources") or {}, plugged)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    number = f"{found[0].get('major')}:{found[0].get('minor')}"
    raise _foreign(container_id, f"{found[0].get('path')}{more}", "character", number, _way_out(linux))


def refuse_blocks(container_id: str, nodes: Collection[BlockNode | AssignedDisk], why: str) -> None:
    """Refuse block devices of the host where no disk can be plugged in. why: what to do about it.

    Raises:
        UnsupportedError: there are some.
    """
    for node in nodes:
        raise _foreign(container_id, node.path, "block", node.device, why)


def _foreign(container_id: str, name: str, kind: str, number: str, way_out: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot create container {container_id}: {name} is a {kind} device of the host, and its number "
        f"{number} is another device in the guest, or none; {way_out}"
    )


def _way_out(linux: JsonObject) -> str:
    rules = (linux.get("resources") or {}).get("devices") or ()
    if any(
        rule.get("allow") and _numbers_of(rule) == (_ANY, _ANY) and "r" in _access(rule) for rule in rules
    ):
        return (
            "for a privileged container, set privileged_without_host_devices = true for this runtime in "
            "containerd's configuration (ctr: --privileged-without-host-devices; nerdctl: "
            "--security-opt privileged-without-host-devices)"
        )
    return "leave it out: a container gets the devices of its guest only, such as /dev/fuse and /dev/net/tun"


def check_rules(action: str, resources: JsonObject, plugged: Collection[Numbers] = ()) -> None:
    """See that no rule of linux.resources allows a device by a number of the host's.

    action: for the sentence, "create container web". plugged: the numbers of the block devices that the
    container gets as disks.

    Raises:
        UnsupportedError: one does.
    """
    for rule in resources.get("devices") or ():
        if rule.get("allow") and not _applies(rule) and not _is_of(rule, plugged):
            major, minor = ("*" if number == _ANY else number for number in _numbers_of(rule))
            raise UnsupportedError(
                f"cannot {action}: it is allowed the device {rule.get('type') or 'a'} {major}:{minor} of the "
                "host, whose number is another device in the guest, or none; leave this rule out"
            )


def rules_of_guest(rules: list[JsonObject], plugged: Collection[Numbers] = ()) -> list[JsonObject]:
    """The rules without those that forbid a device by a number of the host's: the guest has no such device.

    The others are as they were; `check_rules` has refused what allows one. plugged: numbers that the guest's
    agent replaces, those of disks.
    """
    return [rule for rule in rules if _applies(rule) or _is_of(rule, plugged)]


def own_node(path: str) -> bool:
    """Whether a path of the host is the usual one of a device that the guest has itself."""
    return path in OWN_OF_EVERY_LINUX


def _is_own(node: JsonObject) -> bool:
    if node.get("type") == _FIFO:
        return True
    return node.get("type") in _CHARACTER and (node.get("major"), node.get("minor")) in _NUMBERS


def _applies(rule: JsonObject) -> bool:
    """Whether a rule means the same to the guest: it names all devices of a kind, or what every Linux has."""
    major, minor = _numbers_of(rule)
    if major == minor == _ANY:
        return True
    return rule.get("type") == "c" and ((major, minor) in _NUMBERS or major in _PSEUDO_TERMINALS)


def _is_of(rule: JsonObject, plugged: Collection[Numbers]) -> bool:
    return rule.get("type") == BLOCK and (rule.get("major"), rule.get("minor")) in plugged


def _numbers_of(rule: JsonObject) -> tuple[int, int]:
    """Major and minor number; -1 for any, which the specification says by their absence too."""
    major, minor = rule.get("major"), rule.get("minor")
    return (_ANY if major is None else major), (_ANY if minor is None else minor)


def _access(rule: JsonObject) -> str:
    return rule.get("access") or "rwm"
