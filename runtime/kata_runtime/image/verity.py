"""The hashes by which a guest's kernel checks its image, behind the image's own blocks.

Source: the kernel's drivers/md/dm-verity-target.c, version 1 of the format: a hash is SHA-256 of the salt and
a block; the hashes of one level fill the blocks of the next, the highest level first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from kata_hypervisor.verity import Verity

BLOCK = 4096


def append(image: Path, salt: bytes) -> Verity:
    """Write the tree of hashes to the end of an image. Raises OSError.

    The image's file system does not see it: it has its own size. A last block that is not full is filled up
    with zeros.
    """
    data = image.read_bytes()
    blocks = -(-len(data) // BLOCK)
    levels = hash_levels(data.ljust(blocks * BLOCK, b"\0"), salt)
    top = levels[-1] if levels else data.ljust(BLOCK, b"\0")
    with image.open("r+b") as file:
        file.seek(blocks * BLOCK)
        file.write(b"".join(reversed(levels)))
        file.truncate()
    return Verity(hashlib.sha256(salt + top).hexdigest(), salt.hex(), blocks, BLOCK, BLOCK)


def hash_levels(data: bytes, salt: bytes) -> list[bytes]:
    """The levels of the tree over whole blocks, from that of the data's hashes to one of a single block."""
    levels: list[bytes] = []
    below = data
    while len(below) > BLOCK:
        blocks = (below[start : start + BLOCK] for start in range(0, len(below), BLOCK))
        hashes = b"".join(hashlib.sha256(salt + block).digest() for block in blocks)
        below = hashes.ljust(-(-len(hashes) // BLOCK) * BLOCK, b"\0")
        levels.append(below)
    return levels
