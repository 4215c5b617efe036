"""The gaps in a zygote's heap, which its forks would fill: each new object in an old page is a copy of it.

What was imported and forgotten leaves free blocks in thousands of pages. Python takes these first, so that a
fork's first objects would be one here, one there. They are filled before the first fork, for ever. Source:
Objects/obmalloc.c; an allocation of up to 512 bytes is in a pool of 16 KiB with others of its size.
"""

from __future__ import annotations

POOL = 16 << 10
STEP, LARGEST = 16, 512
"""Bytes: sizes of blocks are multiples of the first, up to the second."""
MOST = 4 << 20
"""Bytes of one size, with which this ends where memory is not in pools."""

_HEADER = 48
_BYTES = 33
"""Bytes of a pool before its blocks, and of a bytes object beside its content."""
_OTHERS = 8
"""Blocks of a pool that may be others' who count here: numbers come and go."""

_fillers: list[list[object]] = []


def fill_gaps() -> None:
    """Take what is free in pools that are in use, and leave pools that are not."""
    _fillers.extend(_fill(size) for size in range(STEP, LARGEST + 1, STEP))


def _fill(size: int) -> list[object]:
    """Objects of this size, as many as there are gaps of it: until one pool was filled from its beginning."""
    whole = (POOL - _HEADER) // size - _OTHERS
    made: list[object] = []
    pool = in_pool = 0
    while in_pool < whole and len(made) * size < MOST:
        made.append(_make(size, len(made)))
        at = id(made[-1]) // POOL
        pool, in_pool = at, in_pool + 1 if at == pool else 1
    return made[:-in_pool]


def _make(size: int, number: int) -> object:
    if size == STEP:
        return object()
    # The second size is that of an integer, of which small ones are made already.
    return POOL + number if size == 2 * STEP else bytes(size - _BYTES)
