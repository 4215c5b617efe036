"""Modules that the guest's kernel loads when something asks for them, and what loads them.

netfilter, tunnels, bridges and the like: pods bring programs that expect them of any Linux. The driver of
memory that comes later: the runtime asks for it. File systems of disks that a container is given, with the
checksums that they ask the kernel's cryptography for. They are in the root file system, which is read where
something is used, so that boots pay nothing. The kernel starts /sbin/modprobe (kernel.modprobe) with an
alias; busybox's reads the two tables that are made here as depmod(8) makes them.
"""

from __future__ import annotations

import re

from kata_runtime.image import elf
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel, Module
from kata_runtime.image.tree import Tree

BUSYBOX = "usr/bin/busybox"
MODPROBE = "usr/sbin/modprobe"

ON_DEMAND = re.compile(
    r"net/(netfilter|bridge|8021q|sched|ipv4|ipv6|xfrm|key|llc)/.*|"
    r"drivers/virtio/virtio_mem|"
    r"fs/(ext4/ext4|xfs/xfs)|crypto/crc32c_generic|"
    r"drivers/net/(dummy|geneve|ifb|macvlan|macvtap|tap|tun|veth|vrf|ipvlan/.*|vxlan/.*|wireguard/.*)"
)
"""Their files below the kernel's directory, without the suffix."""


def add(tree: Tree, kernel: Kernel, busybox: bytes | None) -> None:
    """Put the modules, their tables and modprobe into a root file system.

    Raises:
        ContentError: busybox or a module that another needs is missing.
    """
    if busybox is None:
        raise ContentError(f"the packages have no /{BUSYBOX}")
    closures = {name: kernel.load_order([name]) for name in kernel.matching(ON_DEMAND)}
    base = f"usr/lib/modules/{kernel.release}"
    modules = {module.name: module for closure in closures.values() for module in closure}
    for name, module in modules.items():
        tree.file(f"{base}/{name}.ko", module.data)
        closures.setdefault(name, kernel.load_order([name]))
    ordered = sorted(closures)
    tree.file(f"{base}/modules.dep", "".join(_dependencies(closures[name]) for name in ordered).encode())
    tree.file(f"{base}/modules.alias", "".join(_aliases(modules[name]) for name in ordered).encode())
    tree.file(BUSYBOX, busybox, 0o755)
    tree.link(MODPROBE, f"/{BUSYBOX}")


def _dependencies(closure: list[Module]) -> str:
    """A line of modules.dep: the module, and all that it needs, the most basic last."""
    *needed, module = closure
    return f"{module.name}.ko:{''.join(f' {other.name}.ko' for other in reversed(needed))}\n"


def _aliases(module: Module) -> str:
    """Lines of modules.alias, for each name under which the kernel asks for a module."""
    info = elf.module_info(module.data)
    return "".join(f"alias {alias} {module.name}\n" for alias in info.get("alias", ()))
