"""Block devices of the guest: found by path, serial number or PCI address, and waited for while plugged."""

from __future__ import annotations

import os
import re
import stat
import time
from typing import Any

from kata_agent.guest.errors import GuestError, InvalidRequestError, NotFoundError
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.system import load_module
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.blocking import caller_patience

BLOCK_DRIVERS = ("blk", "mmioblk")
_PAUSE = 0.02
_PCI_ROOT = "/sys/devices/pci0000:00"
_BLOCK = "/sys/block"


def block_device(
    source: str, *, timeout: float | None = None, pci_root: str = _PCI_ROOT, block: str = _BLOCK
) -> str:
    """The device node for what a runtime calls a disk.

    source: "/dev/vda", "/dev/disk/by-id/virtio-SERIAL" as udev calls it, which need not be there, or a PCI
    path such as "02" or "02/03".

    Waits for the device to be plugged. timeout: without one, the caller's patience.

    Raises:
        InvalidRequestError: none of these. NotFoundError: it does not appear in `timeout` seconds.
    """
    timeout = caller_patience() if timeout is None else timeout
    if re.fullmatch(r"/dev/[a-z0-9]+", source):
        return _await(source, timeout, lambda: source if _is_block(source) else None)
    if match := re.fullmatch(r"/dev/disk/by-id/virtio-([A-Za-z0-9_-]{1,20})", source):
        return _await(source, timeout, lambda: _with_serial(block, match[1]))
    if re.fullmatch(r"[0-9a-f]{2}(\.[0-7])?(/[0-9a-f]{2}(\.[0-7])?)*", source):
        return _await(source, timeout, lambda: _block_at(pci_root, source))
    raise InvalidRequestError(f"{source!r} is no device node, virtio disk or PCI path")


def _await(source: str, timeout: float | None, look: Any) -> str:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        found: str | None = look()
        if found is not None:
            return found
        if deadline is not None and time.monotonic() >= deadline:
            raise NotFoundError(f"no block device {source} appeared in the guest in {timeout:g} s")
        time.sleep(_PAUSE)


def _is_block(path: str) -> bool:
    """Whether a node is that of a disk that has content: a disk may be there before what is put into it."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISBLK(facts.st_mode) and _sectors_of(facts.st_rdev) > 0


def _sectors_of(number: int) -> int:
    """Size of a block device, as the kernel knows it now."""
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/size") as file:
        return int(file.read())


def _with_serial(root: str, serial: str) -> str | None:
    """The node of the virtio disk with a serial number, once its size is known."""
    for name in _names(root):
        if _read(f"{root}/{name}/serial") == serial and _read(f"{root}/{name}/size") not in ("", "0"):
            return f"/dev/{name}" if _is_block(f"/dev/{name}") else None
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:  # no such attribute, or a disk that goes away while it is asked
        return ""


def _block_at(root: str, path: str) -> str | None:
    """The node of the disk behind a PCI path: each part is a slot on the bus behind the one before."""
    directory = root
    for part in path.split("/"):
        slot = part if "." in part else f"{part}.0"
        matches = [name for name in _names(directory) if re.fullmatch(rf"[0-9a-f]{{4}}:..:{slot}", name)]
        if len(matches) != 1:
            return None
        directory = f"{directory}/{matches[0]}"
    for child in _names(directory):
        for name in _names(f"{directory}/{child}/block"):
            return f"/dev/{name}" if _is_block(f"/dev/{name}") else None
    return None


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def apply(devices: list[agent_pb2.Device], spec: dict[str, Any], reaper: Reaper) -> None:
    """Give the devices of an OCI spec the numbers that they have in this guest.

    Raises:
        InvalidRequestError: a device of a kind that is not known, or that the spec does not mention; a block
            device that is none of this guest's.
        NotFoundError: this guest has no such character device.
    """
    nodes = {node.get("path"): node for node in spec.get("linux", {}).get("devices", ())}
    rules = spec.get("linux", {}).get("resources", {}).get("devices", ())
    here: dict[tuple[Any, Any], tuple[int, int]] = {}
    for device in devices:
        if device.type not in BLOCK_DRIVERS:
            known = ", ".join(BLOCK_DRIVERS)
            raise InvalidRequestError(
                f"device {device.id}: type {device.type!r} is not known (known: {known})"
            )
        node = nodes.pop(device.container_path, None)
        if node is None:
            raise InvalidRequestError(f"device {device.id}: the spec has no device {device.container_path!r}")
        number = os.stat(block_device(device.vm_path or device.id)).st_rdev
        here[node.get("major"), node.get("minor")] = os.major(number), os.minor(number)
        node["major"], node["minor"] = os.major(number), os.minor(number)
    # At once: a number here may be another device's number there.
    for rule in rules:
        found = here.get((rule.get("major"), rule.get("minor"))) if rule.get("type") == "b" else None
        if found is not None:
            rule["major"], rule["minor"] = found
    for node in nodes.values():
        _check_own(node, reaper)


def _check_own(node: dict[str, Any], reaper: Reaper) -> None:
    """See that a node for which nothing was plugged is a device of this guest's; its module is loaded."""
    number = f"{node.get('major')}:{node.get('minor')}"
    if node.get("type") == "b":
        raise InvalidRequestError(
            f"device {node.get('path')}: block device {number} is one of the host's, and was not plugged in"
        )
    if node.get("type") in ("c", "u") and not os.path.exists(f"/sys/dev/char/{number}"):
        try:
            load_module(f"char-major-{number.replace(':', '-')}", [], reaper)
        except GuestError as error:
            raise NotFoundError(
                f"device {node.get('path')}: the guest's kernel has no character device {number} ({error})"
            ) from None
