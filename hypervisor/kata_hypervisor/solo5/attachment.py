"""The devices that a unikernel gets, under the names that it declares: one of each kind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from kata_hypervisor.contract import UnikernelSpec
from kata_hypervisor.elf import reader_of
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.solo5 import abi
from kata_hypervisor.solo5.manifest import (
    BlockProperties,
    Device,
    Kind,
    NetProperties,
    Properties,
    check_devices,
)
from kata_hypervisor.solo5.unikernel_file import Unikernel, read_unikernel

BLOCK_SIZE = 512


@dataclass(frozen=True, slots=True)
class AttachedDevice:
    """A device that the unikernel gets. descriptor: the file's or tap's, the caller's; -1: by name."""

    descriptor: int
    properties: Properties
    read_only: bool = False

    @property
    def kind(self) -> Kind:
        """As in the manifest."""
        return "net" if isinstance(self.properties, NetProperties) else "block"


def read_file(spec: UnikernelSpec) -> Unikernel:
    """Understand the file of a specification.

    Raises:
        UnikernelError: it is no unikernel, in one line with its name.
    """
    try:
        return read_unikernel(reader_of(spec.file))
    except (UnikernelError, OSError) as error:
        raise UnikernelError(f"cannot run the unikernel {spec.name}: {error}") from error


def check_room(unikernel: Unikernel, memory: int) -> None:
    """Refuse a unikernel that is larger than its memory, in bytes. Raises UnikernelError."""
    needed = unikernel.end + abi.PAGE  # a page for its stack
    if memory // abi.LARGE_PAGE * abi.LARGE_PAGE < needed:
        raise UnikernelError(
            f"it needs more than {unikernel.end >> 20} MiB of memory, and would get {memory >> 20} MiB: "
            "raise default_memory, or the container's memory limit"
        )


def attach_devices(devices: tuple[Device, ...], spec: UnikernelSpec) -> Mapping[str, AttachedDevice]:
    """Give what there is the names that the unikernel declares.

    Raises:
        UnikernelError: it declares what there is not, or not what there is.
    """
    available: dict[Kind, AttachedDevice] = {}
    if spec.block is not None:
        available["block"] = AttachedDevice(
            spec.block.descriptor, _block_properties(spec.block.descriptor), spec.block.read_only
        )
    if spec.net is not None:
        available["net"] = AttachedDevice(spec.net.descriptor, NetProperties(spec.net.mac, spec.net.mtu))
    attached = {_name_for(kind, devices): device for kind, device in available.items()}
    check_devices(devices, {name: device.kind for name, device in attached.items()})
    return attached


def _name_for(kind: Kind, devices: tuple[Device, ...]) -> str:
    """The first declared name of a kind; where none is declared, the kind, which the check then refuses."""
    return next((device.name for device in devices if device.kind == kind), kind)


def _block_properties(descriptor: int) -> BlockProperties:
    capacity = os.lseek(descriptor, 0, os.SEEK_END)
    if capacity < BLOCK_SIZE or capacity % BLOCK_SIZE:
        raise UnikernelError(
            f"its block device has {capacity} bytes, which is not a number of {BLOCK_SIZE}-byte blocks"
        )
    return BlockProperties(capacity, BLOCK_SIZE)
