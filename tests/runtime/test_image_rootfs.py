"""What the root filesystem keeps of the packages, and what it refuses to go without."""

from __future__ import annotations

from pathlib import Path

import pytest

from elf_files import make_library
from kata_runtime.image import initramfs, rootfs
from kata_runtime.image.agent import Agent
from kata_runtime.image.errors import ContentError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Tree

LIB = "usr/lib/x86_64-linux-gnu"


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/crun",
        "usr/bin/python3.13",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/lib/ld-linux-aarch64.so.1",
        f"{LIB}/libseccomp.so.2.5.4",
        "usr/lib/python3.11/json/decoder.py",
        "usr/lib/python3.11/this_is_not_this.py",
        "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so",
    ],
)
def test_kept(path: str) -> None:
    assert rootfs.keep(path)


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/perl",
        "usr/bin/python3-config",
        "usr/share/doc/crun/copyright",
        "var/lib/dpkg/status",
        f"{LIB}/gconv/UTF-7.so",
        f"{LIB}/perl-base/auto/x.so",
        "usr/lib/python3.11/this.py",
        "usr/lib/python3.11/test/support/__init__.py",
        "usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
        "usr/lib/python3.11/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so",
        "usr/lib/python3.11/lib-dynload/_codecs_jp.cpython-311-x86_64-linux-gnu.so",
        "usr/lib/python3/dist-packages/x.py",
    ],
)
def test_not_kept(path: str) -> None:
    assert not rootfs.keep(path)


def libraries() -> Tree:
    tree = Tree()
    tree.file("usr/bin/crun", make_library("libyajl.so.2", "ld-linux-x86-64.so.2"), 0o755)
    tree.link(f"{LIB}/libyajl.so.2", "libyajl.so.2.1")
    tree.file(f"{LIB}/libyajl.so.2.1", make_library("libc.so.6"))
    tree.file(f"{LIB}/libc.so.6", make_library("ld-linux-x86-64.so.2"))
    tree.file(f"{LIB}/libgcc_s.so.1", make_library("libc.so.6"))
    tree.file(f"{LIB}/libssl.so.3", make_library("libcrypto.so.3"))
    tree.link("usr/lib64/ld-linux-x86-64.so.2", f"/{LIB}/ld-linux-x86-64.so.2")
    tree.file(f"{LIB}/ld-linux-x86-64.so.2", make_library())
    return tree


def test_libraries_stay_as_long_as_something_needs_them() -> None:
    tree = libraries()
    every = set(tree.entries)
    rootfs.drop_unused_libraries(tree)
    assert every - set(tree.entries) == {f"{LIB}/libssl.so.3"}


def test_a_library_that_nobody_has_is_named_with_who_needs_it() -> None:
    tree = libraries()
    tree.remove(f"{LIB}/libyajl.so.2.1")
    with pytest.raises(ContentError, match=r"libyajl\.so\.2 needs libyajl\.so\.2\.1, which none"):
        rootfs.drop_unused_libraries(tree)


def test_the_agent_leaves_the_hosts_side_behind(tmp_path: Path) -> None:
    package, protobuf = tmp_path / "kata_agent", tmp_path / "google/protobuf"
    for path in [
        "guest/main.py",
        "client.py",
        "client/sub.py",
        "transport.py",
        "protos/agent.proto",
        "clientele.py",
    ]:
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).touch()
    for path in ["message.py", "compiler/plugin_pb2.py", "message.pyi", "../_upb/_message.abi3.so"]:
        (protobuf / path).parent.mkdir(parents=True, exist_ok=True)
        (protobuf / path).touch()
    names = [name for name, _ in Agent(package, protobuf).files()]
    assert names == [
        "kata_agent/clientele.py",
        "kata_agent/guest/main.py",
        "google/protobuf/message.py",
        "google/_upb/_message.abi3.so",
    ]


def test_an_initramfs_without_busybox_is_refused() -> None:
    files = Tree()
    files.file("boot/vmlinuz-6.1", b"kernel")
    files.file("usr/lib/modules/6.1/modules.builtin", b"")
    with pytest.raises(ContentError, match="/usr/bin/busybox"):
        initramfs.make(Kernel(files), files)
