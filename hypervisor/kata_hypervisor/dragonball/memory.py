"""The guest's memory: one memfd, mapped once; the guest sees one or two pieces, around the device gap."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

from kata_hypervisor import libc
from kata_hypervisor.dragonball.layout import HUGE_PAGE, MMIO_GAP, MMIO_GAP_END, PAGE
from kata_hypervisor.errors import HostUnfitError

MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_HUGETLB = 1, 2, 4
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
PIECE = 1 << 16
"""Bytes of a saved memory that are there or not."""


class OutOfRangeError(ValueError):
    """Somebody named an address at which the guest has no memory."""


class Region(NamedTuple):
    """A piece of the guest's physical memory. offset: where it begins in the file and in the mapping."""

    start: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size


def regions_of(size: int) -> tuple[Region, ...]:
    """Lay out `size` bytes of memory: below the device gap as much as fits, the rest from 4 GiB on."""
    low = min(size, MMIO_GAP)
    regions = [Region(0, low, 0)]
    if size > low:
        regions.append(Region(MMIO_GAP_END, size - low, low))
    return tuple(regions)


class GuestMemory:
    """Bytes by guest physical address. Everything that takes an address checks it: addresses are hostile.

    An instance over plain bytes serves tests and fuzzers (`GuestMemory.over`); the real one is `allocate`d.
    """

    def __init__(self, content: memoryview, address: int = 0, descriptor: int = -1) -> None:
        self._content = content
        self.regions = regions_of(len(content))
        self.address = address
        self.descriptor = descriptor
        self.private = False
        self._low = self.regions[0].size

    @classmethod
    def over(cls, content: bytearray) -> GuestMemory:
        """Use a buffer of at most 3 GiB as the memory."""
        return cls(memoryview(content))

    @classmethod
    def allocate(cls, size: int, huge: bool = False) -> GuestMemory:
        """Make and map the file, aligned so that the kernel can use huge pages.

        size: bytes, a multiple of 2 MiB. huge: take them from the host's reserve of huge pages.

        Raises:
            HostUnfitError: the host refuses.
        """
        flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (MFD_HUGETLB if huge else 0)
        kind = "huge pages" if huge else "memory"
        try:
            descriptor = os.memfd_create("guest-memory", flags)
            try:
                os.ftruncate(descriptor, size)
                # Whoever has the descriptor, virtiofsd for one, could take pages from under us otherwise.
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                address = _map_aligned(descriptor, size)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise HostUnfitError(
                f"cannot reserve {size >> 20} MiB of {kind} for the guest: {error.strerror}"
            ) from error
        libc.advise_memory(address, size, libc.MADV_DONTDUMP)
        if not huge:
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                libc.advise_memory(address, size, libc.MADV_HUGEPAGE)
        return cls(bytes_at(address, size), address, descriptor)

    @classmethod
    def load(cls, file: int, size: int, *, private: bool, huge: bool = False) -> GuestMemory:
        """Begin with what a saved machine's memory file holds, which is never written.

        file: its descriptor, the caller's. private: map the file itself, so that machines share what they do
        not write to; but no other process can serve such a memory, and it has no huge pages. Else copy it
        into a memory as `allocate` makes it.

        Raises:
            HostUnfitError: the host refuses.
        """
        if not private:
            memory = cls.allocate(size, huge)
            try:
                for start, end in data_of(file, size):
                    memory._take(file, start, end, huge)
            except OSError as error:
                memory.close()
                raise HostUnfitError(f"cannot copy the memory of a template: {error.strerror}") from error
            return memory
        descriptor = os.dup(file)
        try:
            address = _map_aligned(descriptor, size, mmap.MAP_PRIVATE)
        except OSError as error:
            os.close(descriptor)
            raise HostUnfitError(f"cannot map the memory of a template: {error.strerror}") from error
        memory = cls(bytes_at(address, size), address, descriptor)
        memory.private = True
        return memory

    def _take(self, file: int, start: int, end: int, huge: bool) -> None:
        """Copy a part of a file to where it was. Huge pages take no writes but those to the mapping."""
        if not huge:
            os.lseek(self.descriptor, start, os.SEEK_SET)
        while start < end:
            if huge:
                count = os.preadv(file, [self._content[start:end]], start)
            else:
                count = os.sendfile(self.descriptor, file, start, end - start)
            if not count:
                raise OSError(errno.EIO, "it became shorter")
            start += count

    def save(self, file: int) -> None:
        """Write the memory into a file that has its size, and only zeros. Raises OSError."""
        piece = bytearray(PIECE)
        zeros = bytes(PIECE)
        for offset in range(0, len(self._content), PIECE):
            # Read, and not looked at in the mapping: what the guest never touched stays without pages.
            os.preadv(self.descriptor, [piece], offset)
            if piece != zeros:
                os.pwritev(file, [piece], offset)

    def close(self) -> None:
        """Unmap and close. The caller has ended every thread that could touch the memory."""
        if self.descriptor >= 0:
            size = len(self._content)
            self._content = memoryview(b"")
            unmap(self.address, size)
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(region.size for region in self.regions)

    def offset(self, address: int, length: int) -> int:
        """Translate an address into an offset of the file, for `length` bytes in one piece.

        Raises:
            OutOfRangeError: some of it is not memory.
        """
        if address >= 0 and length >= 0 and address + length <= self._low:
            return address
        for region in self.regions:
            if address >= region.start and length >= 0 and address + length <= region.end:
                return address - region.start + region.offset
        raise OutOfRangeError(f"no guest memory at {address:#x}, {length} bytes")

    def view(self, address: int, length: int) -> memoryview:
        """Return the memory itself, writable. Raises OutOfRangeError."""
        if address >= 0 and length >= 0 and address + length <= self._low:  # nearly always, and often
            return self._content[address : address + length]
        offset = self.offset(address, length)
        return self._content[offset : offset + length]

    def read(self, address: int, length: int) -> bytes:
        """Return a copy. Raises OutOfRangeError."""
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write. Raises OutOfRangeError."""
        self.view(address, len(data))[:] = data

    def host_address(self, address: int, length: int) -> int:
        """Return where the memory is in this process. Raises OutOfRangeError."""
        return self.address + self.offset(address, length)

    def discard(self, view: memoryview) -> None:
        """Give the whole pages of a part of the memory (a `view`) back to the host.

        The guest reads zeros there, or what its template had. A host that cannot do it keeps the pages.
        """
        # SAFETY: the view is of this memory, which stays mapped while a device works on it (see `close`).
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        first, end = -(-start // PAGE) * PAGE, (start + len(view)) // PAGE * PAGE
        if self.descriptor >= 0 and end > first:
            with contextlib.suppress(OSError):
                libc.advise_memory(
                    first, end - first, mmap.MADV_DONTNEED if self.private else libc.MADV_REMOVE
                )

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions)


def map_shared(descriptor: int, size: int) -> int:
    """Map a file's first bytes, shared, without keeping it open; return the address. Raises OSError."""
    return libc.map_memory(None, size, READ_WRITE, mmap.MAP_SHARED, descriptor)


def map_anonymous(size: int) -> int:
    """Map memory of zeros that is nobody's file, shared; return the address. Raises OSError."""
    return libc.map_memory(None, size, READ_WRITE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1)


def unmap(address: int, size: int) -> None:
    """End a mapping. Nobody may use `bytes_at` it any more."""
    libc.unmap_memory(address, size)


def bytes_at(address: int, size: int) -> memoryview:
    """The mapped memory at an address; it does not keep the mapping alive."""
    # SAFETY: the caller has mapped all of it, readable and writable, and unmaps it only when nobody uses the
    # view any more.
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def data_of(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a sparse file has data: first byte, and the first one behind. Raises OSError."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more of it
                return
            raise
        end = min(size, os.lseek(file, start, os.SEEK_HOLE))
        yield start, end


def _map_aligned(descriptor: int, size: int, kind: int = mmap.MAP_SHARED) -> int:
    """Map the file at a multiple of 2 MiB: reserve more than that, and map over a part of it."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    reserved = libc.map_memory(None, size + HUGE_PAGE, libc.PROT_NONE, flags, -1)
    address = -(-reserved // HUGE_PAGE) * HUGE_PAGE
    try:
        libc.map_memory(address, size, READ_WRITE, kind | libc.MAP_FIXED, descriptor)
    except OSError:
        unmap(reserved, size + HUGE_PAGE)
        raise
    for start, end in ((reserved, address), (address + size, reserved + size + HUGE_PAGE)):
        if end > start:
            unmap(start, end - start)
    return address
