"""From power-on to the root filesystem: busybox, the modules that a guest needs, and `init.sh`.

Uncompressed on purpose: unpacking under emulation costs more than reading the larger file.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from importlib.resources import files

from kata_runtime.image import cpio
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Entry, Tree

BUSYBOX = "usr/bin/busybox"
APPLETS = ("insmod", "mount", "poweroff", "switch_root", "usleep")
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


def make(
    kernel: Kernel,
    packages: Tree,
    *,
    init: bytes | None = None,
    modules: Iterable[str] | None = None,
    applets: Iterable[str] = APPLETS,
) -> bytes:
    """Return the initramfs for a kernel. packages: has busybox. init: in place of ours.

    Raises:
        ContentError: busybox or a module is missing.
    """
    busybox = packages.read(BUSYBOX)
    if busybox is None:
        raise ContentError(f"the packages have no /{BUSYBOX}")
    ordered = kernel.load_order(MODULES if modules is None else modules)
    tree = Tree()
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
