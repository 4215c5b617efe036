"""Modules on demand: which are taken, what they need, and the tables that modprobe reads."""

from __future__ import annotations

import pytest

from elf_files import make_module
from kata_runtime.image import modules
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Tree

RELEASE = "6.1.0-1-cloud-amd64"
BASE = f"usr/lib/modules/{RELEASE}"


def kernel(**files: bytes) -> Kernel:
    """A kernel of modules by path, with `__` for a slash."""
    tree = Tree()
    tree.file(f"boot/vmlinuz-{RELEASE}", b"kernel")
    tree.file(f"{BASE}/modules.builtin", b"kernel/lib/builtin.ko\n")
    for name, data in files.items():
        tree.file(f"{BASE}/kernel/{name.replace('__', '/')}.ko", data)
    return Kernel(tree)


def added(made: Kernel, busybox: bytes | None = b"busybox") -> Tree:
    tree = Tree()
    modules.add(tree, made, busybox)
    return tree


def test_modules_with_all_that_they_need() -> None:
    tree = added(
        kernel(
            net__netfilter__nf_nat=make_module(depends="nf_conntrack,builtin"),
            net__netfilter__nf_conntrack=make_module(depends="libcrc32c"),
            lib__libcrc32c=make_module(depends=""),
            drivers__net__tun=make_module(depends=""),
            drivers__net__ethernet__e1000=make_module(depends=""),
            drivers__net__wireguard__wireguard=make_module(depends=""),
        )
    )
    assert tree.read(f"{BASE}/modules.dep") == (
        b"libcrc32c.ko:\n"
        b"nf_conntrack.ko: libcrc32c.ko\n"
        b"nf_nat.ko: nf_conntrack.ko libcrc32c.ko\n"
        b"tun.ko:\n"
        b"wireguard.ko:\n"
    )
    names = {path.removeprefix(f"{BASE}/") for path in tree.entries if path.endswith(".ko")}
    assert names == {"libcrc32c.ko", "nf_conntrack.ko", "nf_nat.ko", "tun.ko", "wireguard.ko"}


def test_aliases() -> None:
    tree = added(kernel(drivers__net__tun=make_module(depends="", alias="devname:net/tun")))
    assert tree.read(f"{BASE}/modules.alias") == b"alias devname:net/tun tun\n"


def test_modprobe_is_busyboxs() -> None:
    tree = added(kernel())
    assert tree.entries[modules.MODPROBE].data == b"/usr/bin/busybox"
    assert tree.read(modules.BUSYBOX) == b"busybox"


def test_no_busybox() -> None:
    with pytest.raises(ContentError, match="the packages have no /usr/bin/busybox"):
        added(kernel(), None)


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("net/ipv4/netfilter/iptable_nat", True),
        ("net/8021q/8021q", True),
        ("net/bridge/br_netfilter", True),
        ("drivers/net/veth", True),
        ("drivers/net/vxlan/vxlan", True),
        ("drivers/net/virtio_net", False),
        ("net/vmw_vsock/vsock", False),
        ("fs/ext4/ext4", True),
        ("fs/xfs/xfs", True),
        ("fs/btrfs/btrfs", False),
    ],
)
def test_which(path: str, taken: bool) -> None:
    assert bool(modules.ON_DEMAND.fullmatch(path)) is taken
