"""The hashes behind an image, and what the guest's kernel is told of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.kernel_line import kernel_line
from kata_hypervisor.verity import Verity
from kata_runtime.image import verity

SALT = bytes(range(32))
SPEC = VmSpec("pod", Path("/run/pod"), 1, 256, Path("/kernel"), image=Path("/image"))


def read_root(image: bytes, hashes: Verity, block: int) -> str:
    """Follow a block's hash to the root, as a reader does: by what the file holds, checking each step."""
    salt, size = bytes.fromhex(hashes.salt), hashes.data_block_size
    counts = [hashes.data_blocks]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // 128))
    content = image[block * size : (block + 1) * size]
    for level in range(1, len(counts)):
        digest, index = hashlib.sha256(salt + content).digest(), block % 128
        block //= 128
        above = hashes.data_blocks + sum(counts[level + 1 :])
        content = image[(above + block) * size : (above + block + 1) * size]
        assert content[index * 32 : index * 32 + 32] == digest, f"level {level}"
    return hashlib.sha256(salt + content).hexdigest()


@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 300, 128 * 128 + 1])
def test_each_block_leads_to_the_root(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"".join(number.to_bytes(4, "big") * 1024 for number in range(blocks)))
    made = verity.append(path, SALT)
    assert (made.data_blocks, made.salt) == (blocks, SALT.hex())
    content = path.read_bytes()
    for block in {0, blocks // 2, blocks - 1}:
        assert read_root(content, made, block) == made.root_hash


def test_a_bit_is_another_root(tmp_path: Path) -> None:
    path = tmp_path / "image"
    roots = set()
    for place in (None, 0, 4095, 4096, 12287):
        content = bytearray(12288)
        if place is not None:
            content[place] ^= 1
        path.write_bytes(content)
        roots.add(verity.append(path, SALT).root_hash)
    assert len(roots) == 5


def test_what_is_appended_twice_is_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 5000)
    made = verity.append(path, SALT)
    assert path.stat().st_size == 3 * 4096
    assert Verity.parse(str(made)) == made


def test_the_kernels_line() -> None:
    checked = replace(SPEC, verity=Verity("ab" * 32, "cd", 10, 4096, 4096))
    line = kernel_line((), checked, quiet=True, partitioned=False)
    assert (
        'dm-mod.create="dm-verity,,,ro,0 80 verity 1 /dev/vda /dev/vda 4096 4096 10 10 sha256 '
        f'{"ab" * 32} cd 1 panic_on_corruption" root=/dev/dm-0 rootfstype=erofs ro'
    ) in line
    line = kernel_line((), checked, quiet=True, partitioned=True)
    assert "verity 1 /dev/vda1 /dev/vda2 4096 4096 10 0 sha256" in line
    assert "dm-mod" not in kernel_line((), SPEC, quiet=True, partitioned=False)
