"""Who answers at a port or at an address without memory; where nobody does, all bits are ones."""

from __future__ import annotations

from typing import Protocol

from kata_hypervisor.dragonball.layout import PAGE


class PortDevice(Protocol):
    """Something behind ports. Called from any vCPU's thread; a port's accesses are of 1, 2 or 4 bytes."""

    def read_port(self, port: int, size: int) -> int:
        """Return the value, which the bus cuts to `size` bytes."""

    def write_port(self, port: int, value: int, size: int) -> None:
        """Take the value."""


class MemoryDevice(Protocol):
    """Something behind a page of addresses. Called from any vCPU's thread; accesses are of 1 to 8 bytes."""

    def read_memory(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes."""

    def write_memory(self, offset: int, data: bytes) -> None:
        """Take the bytes."""


class Bus:
    """The machine's ports and device pages; filled before the guest runs."""

    def __init__(self) -> None:
        self._ports: dict[int, PortDevice] = {}
        self._pages: dict[int, MemoryDevice] = {}

    def add_ports(self, first: int, count: int, device: PortDevice) -> None:
        """Give `count` ports to a device."""
        for port in range(first, first + count):
            self._ports[port] = device

    def add_page(self, address: int, device: MemoryDevice) -> None:
        """Give the page at an address to a device."""
        self._pages[address // PAGE] = device

    def read_port(self, port: int, size: int) -> bytes:
        """Return `size` bytes from a port."""
        device = self._ports.get(port)
        if device is None:
            return b"\xff" * size
        return (device.read_port(port, size) & (1 << 8 * size) - 1).to_bytes(size, "little")

    def write_port(self, port: int, data: bytes) -> None:
        """Write to a port."""
        device = self._ports.get(port)
        if device is not None:
            device.write_port(port, int.from_bytes(data, "little"), len(data))

    def read_memory(self, address: int, size: int) -> bytes:
        """Return `size` bytes from a device's page; an access across its end reaches nobody."""
        page, offset = divmod(address, PAGE)
        device = self._pages.get(page)
        if device is None or offset + size > PAGE:
            return b"\xff" * size
        return device.read_memory(offset, size)

    def write_memory(self, address: int, data: bytes) -> None:
        """Write to a device's page."""
        page, offset = divmod(address, PAGE)
        device = self._pages.get(page)
        if device is not None and offset + len(data) <= PAGE:
            device.write_memory(offset, data)
