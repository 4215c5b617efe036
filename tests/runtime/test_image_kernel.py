"""Modules load after what they need, whatever their names look like and however they are compressed."""

from __future__ import annotations

import gzip
import lzma

import pytest

from elf_files import make_module
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Tree

BASE = "usr/lib/modules/6.1.0-1-cloud-amd64"


def kernel(*, builtin: str = "kernel/fs/ext4/ext4.ko\n", **modules: bytes) -> Kernel:
    """Make a kernel of modules by name; `__` stands for a hyphen, as in the file name virtio-rng.ko."""
    files = Tree()
    files.file("boot/vmlinuz-6.1.0-1-cloud-amd64", b"kernel")
    files.file(f"{BASE}/modules.builtin", builtin.encode())
    for name, data in modules.items():
        files.file(f"{BASE}/kernel/drivers/{name.replace('__', '-')}.ko", data)
    return Kernel(files)


def order(made: Kernel, *names: str) -> list[str]:
    return [module.name for module in made.load_order(names)]


def test_dependencies_come_first_and_once() -> None:
    made = kernel(
        virtio_pci=make_module(depends="virtio,virtio_ring"),
        virtio_blk=make_module(depends="virtio"),
        virtio=make_module(depends="virtio_ring"),
        virtio_ring=make_module(depends=""),
        unused=make_module(depends=""),
    )
    assert order(made, "virtio_pci", "virtio_blk") == ["virtio_ring", "virtio", "virtio_pci", "virtio_blk"]


def test_hyphens_are_underscores() -> None:
    made = kernel(virtio__rng=make_module(depends="rng-core"), rng__core=make_module(depends=""))
    assert order(made, "virtio_rng") == order(made, "virtio-rng") == ["rng_core", "virtio_rng"]


def test_what_is_built_in_is_left_out() -> None:
    made = kernel(erofs=make_module(depends="ext4"))
    assert order(made, "ext4", "erofs") == ["erofs"]


def test_a_soft_dependency_is_loaded_before_where_it_exists() -> None:
    made = kernel(
        libcrc32c=make_module(depends="", softdep="pre: crc32c absent post: later"),
        crc32c=make_module(depends=""),
        later=make_module(depends=""),
    )
    assert order(made, "libcrc32c") == ["crc32c", "libcrc32c"]


def test_a_missing_module_names_who_needs_it() -> None:
    made = kernel(erofs=make_module(depends="libcrc32c"))
    with pytest.raises(ContentError, match="no module libcrc32c, which erofs needs"):
        made.load_order(["erofs"])


def test_a_circle_is_refused() -> None:
    made = kernel(one=make_module(depends="two"), two=make_module(depends="one"))
    with pytest.raises(ContentError, match="one -> two -> one"):
        made.load_order(["one"])


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_compressed_modules_are_decompressed(suffix: str, compress: object) -> None:
    data = make_module(depends="")
    files = Tree()
    files.file("boot/vmlinuz-6.12", b"kernel")
    files.file("usr/lib/modules/6.12/modules.builtin", b"")
    files.file(f"usr/lib/modules/6.12/kernel/fs/erofs/erofs.ko{suffix}", compress(data))  # type: ignore[operator]
    (module,) = Kernel(files).load_order(["erofs"])
    assert (module.name, module.data) == ("erofs", data)


def test_packages_without_a_kernel_are_refused() -> None:
    with pytest.raises(ContentError, match="found none"):
        Kernel(Tree())
