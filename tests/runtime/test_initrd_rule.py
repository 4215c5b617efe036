"""What an initrd beside an image is, by its content."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from kata_configuration import lint
from kata_runtime.ctl.initrd_rule import INITRD_RULE
from kata_runtime.image import cpio
from kata_runtime.image.tree import Tree


def archive(*, agent: str = "", init: str = "") -> bytes:
    """An archive with a shell, and with Kata's agent at a path, or a link from /init."""
    tree = Tree()
    tree.file("bin/sh", b"x" * 5000, 0o755)
    if agent:
        tree.file(agent, b"agent", 0o755)
    if init:
        tree.link("init", init)
    else:
        tree.file("init", b"#!/bin/sh\nmount /dev/vda /root\n", 0o755)
    return cpio.pack(tree)


PLAIN = archive()
WHOLE = archive(agent="usr/bin/kata-agent")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE, True),
        (gzip.compress(WHOLE, mtime=0), True),
        (archive(agent="./usr/bin/kata-agent"), True),  # as `find .` names it
        (archive(init="/sbin/init"), True),
        (PLAIN, False),
        (gzip.compress(PLAIN, mtime=0), False),
        (archive(init="usr/lib/systemd/systemd"), False),
        (archive(agent="usr/share/doc/kata-agent"), False),
        # What is no such archive, or none to its end, is for the kernel to refuse.
        (b"", False),
        (b"\x28\xb5\x2f\xfd zstd", False),
        (gzip.compress(WHOLE, mtime=0)[:40], False),
        (gzip.compress(WHOLE, mtime=0)[:20] + b"\xff" * 100, False),
        (b"070701" + b"z" * 200, False),
        (b"070701" + b"-0000001" * 13 + WHOLE, False),
        (b"070701" + b"f" * 200, False),
    ],
    # The bytes as names would be long, and must be the same in each process that runs tests.
    ids=lambda value: str(value) if isinstance(value, bool) else f"{len(value)} bytes",
)
@pytest.mark.parametrize("name", ["initrd.img", "kata-initrd.img"])
def test_an_initrd_is_known_by_what_is_in_it(
    tmp_path: Path, name: str, content: bytes, expected: bool
) -> None:
    initrd = tmp_path / name
    initrd.write_bytes(content)
    path = tmp_path / "configuration.toml"
    path.write_text(f'[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\ninitrd = "{initrd}"\n')
    found = [item for item in lint(path, host_rules=(INITRD_RULE,)) if item.code == "KATA404"]
    assert [(item.key, item.line) for item in found] == [("hypervisor.qemu.image", 3)] * expected
    assert all(f"{name} has Kata's agent in it" in item.message for item in found)
    assert not [item for item in lint(path, check_host=False) if item.code == "KATA404"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "initrd")
    path = tmp_path / "configuration.toml"
    path.write_text(f'[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\ninitrd = "{tmp_path}/initrd"\n')
    assert "KATA404" not in {item.code for item in lint(path, host_rules=(INITRD_RULE,))}
