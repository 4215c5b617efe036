"""A unikernel's memory: one mapping from address 0 on. Every address that the guest names is checked."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.solo5.abi import LARGE_PAGE, LOWEST, MOST_MEMORY


class GuestFaultError(Exception):
    """The guest has done what ends it. The message continues "the unikernel"."""


class Area(NamedTuple):
    """A part of the memory. fixed: whether the guest may only read it."""

    start: int
    end: int
    fixed: bool


class Memory:
    """The memory of one guest.

    size: bytes, a multiple of LARGE_PAGE, at most MOST_MEMORY. fixed: the areas, from start to end, that the
    guest may not change, in order and apart; all below LOWEST is one as well, as far as the guest's calls go.

    Raises:
        HostUnfitError: the host has not that much.
    """

    def __init__(self, size: int, fixed: Sequence[tuple[int, int]] = ()) -> None:
        if not LARGE_PAGE <= size <= MOST_MEMORY or size % LARGE_PAGE:
            raise ValueError(f"no memory of {size} bytes")
        self.size = size
        self._fixed = tuple(fixed)
        try:
            self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise HostUnfitError(
                f"cannot map {size >> 20} MiB of memory for the guest: {error.strerror}"
            ) from error
        self._content = memoryview(self._mapping)

    @property
    def address(self) -> int:
        """Where it is in this process, until `close`."""
        # SAFETY: the mapping is `self._mapping`'s, which KVM uses and which outlives the processor.
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    @property
    def areas(self) -> Iterator[Area]:
        """All of the memory, split where the guest's rights change."""
        start = 0
        for first, end in self._fixed:
            if start < first:
                yield Area(start, first, fixed=False)
            yield Area(first, end, fixed=True)
            start = end
        yield Area(start, self.size, fixed=False)

    def view(self, address: int, length: int) -> memoryview:
        """The memory itself, for what the host puts there.

        Raises:
            GuestFaultError: some of it is not memory.
        """
        if address < 0 or length < 0 or address + length > self.size:
            raise GuestFaultError(
                f"named {length} bytes at {address:#x}, and has memory up to {self.size:#x}"
            )
        return self._content[address : address + length]

    def writable(self, address: int, length: int) -> memoryview:
        """The memory for a call's result. Raises GuestFaultError: the guest may not write there."""
        view = self.view(address, length)
        if address < LOWEST or any(address < end and start < address + length for start, end in self._fixed):
            raise GuestFaultError(f"wanted {length} bytes written to {address:#x}, which is only for reading")
        return view

    def close(self) -> None:
        """Unmap it. No processor runs any more."""
        self._content.release()
        self._mapping.close()
