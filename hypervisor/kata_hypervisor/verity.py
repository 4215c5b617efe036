"""dm-verity for the guest's image: the value of kernel_verity_params as the guest's kernel reads it.

Sources: the kernel's Documentation/admin-guide/device-mapper/dm-init.rst and verity.rst.
"""

from __future__ import annotations

from typing import NamedTuple

DEVICE = "/dev/dm-0"
"""The device that is checked, from which the guest mounts its root file system."""

SECTOR = 512


class Verity(NamedTuple):
    """A tree of hashes over the blocks of an image.

    root_hash, salt: hexadecimal digits; the hash is SHA-256. data_blocks: how many blocks are checked.
    data_block_size, hash_block_size: bytes.
    """

    root_hash: str
    salt: str
    data_blocks: int
    data_block_size: int
    hash_block_size: int

    @classmethod
    def parse(cls, value: str) -> Verity:
        """Read a value of kernel_verity_params that the configuration has validated."""
        given = dict(item.partition("=")[::2] for item in value.split(","))
        numbers = (int(given[name]) for name in ("data_blocks", "data_block_size", "hash_block_size"))
        return cls(given["root_hash"], given["salt"], *numbers)

    def __str__(self) -> str:
        """The value of kernel_verity_params."""
        return (
            f"root_hash={self.root_hash},salt={self.salt},data_blocks={self.data_blocks},"
            f"data_block_size={self.data_block_size},hash_block_size={self.hash_block_size}"
        )

    def parameter(self, device: str, hashes: str | None) -> str:
        """The parameter of the kernel's command line that makes DEVICE.

        device: what is checked. hashes: the device that holds the tree, from its start; None where the tree
        follows the blocks on the same one. A block that is not what its hash says ends the guest.
        """
        size = self.data_blocks * self.data_block_size
        start = 0 if hashes else -(-size // self.hash_block_size)
        table = (
            f"0 {size // SECTOR} verity 1 {device} {hashes or device} {self.data_block_size} "
            f"{self.hash_block_size} {self.data_blocks} {start} sha256 {self.root_hash} {self.salt} "
            "1 panic_on_corruption"
        )
        return f'dm-mod.create="dm-verity,,,ro,{table}"'
