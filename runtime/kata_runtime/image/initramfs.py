"""From power-on to the root filesystem: busybox, the modules that a guest needs, and `init.sh`.

Uncompressed on purpose: unpacking under emulation costs more than reading the larger file.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from importlib.resources import files

from kata_runtime.image import cpio, rootfs
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Entry, Tree

BUSYBOX = "usr/bin/busybox"
APPLETS = ("insmod", "mount", "poweroff", "switch_root", "usleep")
DMSETUP = "usr/sbin/dmsetup"
CONSOLE = Entry(stat.S_IFCHR | 0o600, device=(5, 1))

# Before the root filesystem, because the root filesystem holds none: it has no reason to load one later.
MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "erofs",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
    "overlay",
    "virtio_rng",
    "virtio_balloon",
    "virtio_net",
    "af_packet",
)

VERITY, HASHES = "dm_verity", ("sha256_generic", "sha256")
"""What checks the root file system's blocks, and the names that its hash has by the kernel's version."""


def make(
    kernel: Kernel,
    packages: Tree,
    *,
    verity: Tree | None = None,
    init: bytes | None = None,
    modules: Iterable[str] | None = None,
    applets: Iterable[str] = APPLETS,
) -> bytes:
    """Return the initramfs for a kernel. packages: has busybox. init: in place of ours.

    verity: dmsetup with its libraries, for an initramfs that checks the root file system; see `keep_verity`.

    Raises:
        ContentError: busybox or a module is missing.
    """
    busybox = packages.read(BUSYBOX)
    if busybox is None:
        raise ContentError(f"the packages have no /{BUSYBOX}")
    checking = (VERITY, *filter(kernel.has, HASHES)) if verity else ()
    ordered = kernel.load_order((*MODULES, *checking) if modules is None else modules)
    tree = Tree(dict(verity.entries) if verity else {})
    if verity:
        for name in ("lib", "lib64", "sbin"):
            tree.link(name, f"usr/{name}")
    tree.file("init", init or files(__package__).joinpath("init.sh").read_bytes(), 0o755)
    tree.file("bin/busybox", busybox, 0o755)
    for applet in applets:
        tree.link(f"bin/{applet}", "busybox")
    tree.file("modules/order", "".join(f"{module.name}\n" for module in ordered).encode())
    for module in ordered:
        tree.file(f"modules/{module.name}.ko", module.data)
    for name in ("dev", "proc", "root"):
        tree.directory(name)
    tree.entries["dev/console"] = CONSOLE
    return cpio.pack(tree)


def keep_verity(path: str) -> bool:
    """Whether a file of dmsetup's packages may be part of the initramfs."""
    return path == DMSETUP or rootfs.is_library(path)
