"""A program of one's own as the guest's agent: what is refused, what it brings, what the image says of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from elf_files import make_library
from kata_hypervisor.elf import EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP, PT_LOAD
from kata_runtime.ctl import main as ctl
from kata_runtime.image import builder, elf, manifest, rootfs, sbom
from kata_runtime.image.agent_program import AgentProgram
from kata_runtime.image.builder import Build, Outcome, Plan, Progress
from kata_runtime.image.errors import ContentError
from kata_runtime.image.manifest import Artifact, Manifest
from kata_runtime.image.tree import Tree

LIB = "usr/lib/x86_64-linux-gnu"
LOADER = "/lib64/ld-linux-x86-64.so.2"
X86 = "x86_64"


def program(
    *needed: str,
    loader: str = "",
    kind: int = ET_EXEC,
    machine: int = EM_X86_64,
    entry: int = 0x401000,
    loads: int = 64,
) -> bytes:
    """Make a program. needed: libraries. loader: "" for a static one. loads: bytes from its file."""
    data = bytearray(make_library(*needed))
    texts = [(PT_LOAD, 0, loads)]
    if loader:
        texts.append((PT_INTERP, len(data), len(loader) + 1))
        data += loader.encode() + b"\0"
    struct.pack_into("<HHI", data, 16, kind, machine, 1)
    struct.pack_into("<QQ", data, 24, entry, len(data))
    struct.pack_into("<HHH", data, 52, 64, 56, len(texts))
    for what, offset, size in texts:
        data += struct.pack("<IIQQQQQQ", what, 5, offset, 0, 0, size, size, 1)
    return bytes(data)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a program where nobody else may change it."""

    def write(content: bytes) -> Path:
        path = tmp_path / "own-agent"
        path.write_bytes(content)
        path.chmod(0o755)
        return path

    tmp_path.chmod(0o755)
    return write


@pytest.mark.parametrize("kind", [ET_EXEC, ET_DYN])
def test_a_static_program_is_the_guests_init(kind: int, written: Callable[[bytes], Path]) -> None:
    content = program(kind=kind)
    agent = AgentProgram.read(written(content), X86)
    tree = Tree()
    agent.add(tree)
    assert tree.entries["usr/sbin/init"].data == content
    assert tree.entries["usr/sbin/init"].mode & 0o777 == 0o755
    assert agent.loader is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"it is not an ELF file"),
        (b"#!/usr/bin/python3\n", r"it is not an ELF file: it begins with b'#!/u'"),
        (program()[:40], r"it ends within its ELF header"),
        (program(machine=EM_AARCH64), r"it is for aarch64 \(64 bits\), and the guest's processor is x86_64"),
        (program(kind=1), r"it is not a program: it has no address to start at"),
        (program(kind=ET_DYN, entry=0), r"it is not a program: it has no address to start at"),
        (program(loads=1 << 30), r"it ends before what it is to load"),
        (program("libc.so.6", kind=ET_DYN), r"it is a library, not a program"),
    ],
)
def test_what_the_guest_could_not_start_is_refused(
    content: bytes, reason: str, written: Callable[[bytes], Path]
) -> None:
    path = written(content)
    with pytest.raises(ContentError, match=f"^cannot use {path} as the guest's agent: {reason}"):
        AgentProgram.read(path, X86)


def test_what_others_may_change_is_refused(tmp_path: Path, written: Callable[[bytes], Path]) -> None:
    path = written(program())
    link = tmp_path / "link"
    link.symlink_to("own-agent")
    for mode in (0o775, 0o757):
        path.chmod(mode)
        for name in (path, link):
            with pytest.raises(
                ContentError, match=f"has the mode {mode:04o}, which lets others write: copy it to where"
            ):
                AgentProgram.read(name, X86)
    path.chmod(0o755)
    tmp_path.chmod(0o777)
    with pytest.raises(
        ContentError, match=f"{tmp_path} has the mode 0777, which lets others put files into it"
    ):
        AgentProgram.read(path, X86)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
    for name, reason in {
        "fifo": "it is not a regular file",
        ".": "it is not a regular file",
        "socket": "No such device or address",
        "nothing": "No such file or directory",
    }.items():
        with pytest.raises(ContentError, match=f"as the guest's agent: {reason}$"):
            AgentProgram.read(tmp_path / name, X86)


def packages() -> Tree:
    """What the guest's packages have."""
    tree = Tree()
    tree.file(f"{LIB}/libc.so.6", make_library("ld-linux-x86-64.so.2"))
    tree.file(f"{LIB}/libseccomp.so.2", make_library("libc.so.6"))
    tree.file(f"{LIB}/libunused.so.1", make_library("libc.so.6"))
    tree.link("usr/lib64/ld-linux-x86-64.so.2", f"/{LIB}/ld-linux-x86-64.so.2")
    tree.file(f"{LIB}/ld-linux-x86-64.so.2", make_library())
    return tree


def test_its_libraries_stay_in_the_image_and_others_go(written: Callable[[bytes], Path]) -> None:
    agent = AgentProgram.read(written(program("libseccomp.so.2", "libc.so.6", loader=LOADER)), X86)
    assert agent.loader == LOADER
    kept = {path for path in rootfs.assemble(packages(), agent).entries if rootfs.is_library(path)}
    assert kept == {path for path in packages().entries if "unused" not in path}


@pytest.mark.parametrize(
    ("needed", "loader", "lacking"),
    [
        (("libc.so.6", "libdevmapper.so.1.02.1"), LOADER, r"libdevmapper\.so\.1\.02\.1"),
        ((), "/lib/ld-musl-x86_64.so.1", r"/lib/ld-musl-x86_64\.so\.1"),
        (("libssl.so.3",), "/nix/store/ld.so", r"/nix/store/ld\.so, libssl\.so\.3"),
    ],
)
def test_what_the_image_lacks_is_named(
    needed: tuple[str, ...], loader: str, lacking: str, written: Callable[[bytes], Path]
) -> None:
    agent = AgentProgram.read(written(program(*needed, loader=loader)), X86)
    with pytest.raises(
        ContentError, match=f"it needs {lacking}, which the image has not: link it statically"
    ):
        agent.add(packages())


@pytest.fixture
def linked(tmp_path: Path, written: Callable[[bytes], Path]) -> Callable[[bytes], AgentProgram]:
    """Puts a program that this host has, changed, into a root with this host's libraries for it."""
    root = tmp_path / "root"
    here = Path(sys.executable).resolve()

    def put(name: bytes) -> AgentProgram:
        agent = AgentProgram.read(written(here.read_bytes().replace(b"GLIBC_2.2.5\0", name)))
        assert agent.loader is not None
        (root / "usr/sbin").mkdir(parents=True)
        (root / rootfs.INIT).write_bytes(agent.content)
        loader = Path(agent.loader).resolve()
        libraries = root / "usr/lib" / f"{os.uname().machine}-linux-gnu"
        libraries.mkdir(parents=True)
        shutil.copy(loader, libraries)
        for library in elf.needed(agent.content):
            shutil.copy(loader.parent / library, libraries)
        return agent

    return put


def test_the_images_own_loader_is_asked(tmp_path: Path, linked: Callable[[bytes], AgentProgram]) -> None:
    linked(b"GLIBC_2.2.5\0").finish(tmp_path / "root")


def test_a_version_that_the_image_lacks_is_named(
    tmp_path: Path, linked: Callable[[bytes], AgentProgram]
) -> None:
    agent = linked(b"GLIBC_9.9.9\0")
    says = r"the image's loader says: /usr/sbin/init: /usr/lib/.*: version `GLIBC_9\.9\.9' not found"
    with pytest.raises(ContentError, match=says):
        agent.finish(tmp_path / "root")


def test_another_program_is_another_image(written: Callable[[bytes], Path], tmp_path: Path) -> None:
    plan = Plan([], [], [], [])
    agents = [AgentProgram.read(written(program(entry=entry)), X86) for entry in (1, 2, 1)]
    one, two, again = (builder._input(Build(tmp_path, agent=agent), plan) for agent in agents)
    assert one == again
    assert one != two != builder._input(Build(tmp_path), plan)


def test_the_bill_of_materials_has_its_hash(written: Callable[[bytes], Path]) -> None:
    agent = AgentProgram.read(written(program()), X86)
    pieces = agent.components()
    text = sbom.write("cafe", {"root": Artifact(1, "01" * 32)}, {"root": pieces})
    (listed,) = [one for one in json.loads(text)["components"] if one["name"] == "kata-agent"]
    assert listed["type"] == "application"
    assert listed["hashes"] == [{"alg": "SHA-256", "content": agent.described.rpartition(" ")[2]}]
    assert "version" not in listed
    assert str(agent.path) not in text


def test_the_command_hands_it_to_the_builder_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    written: Callable[[bytes], Path],
) -> None:
    def build(request: Build, progress: Progress) -> Outcome:
        made = Manifest("cafe", "s", "6.12", "2026-11-30", request.agent.described, "h", [], {})
        made.write(tmp_path)
        return Outcome(made, built=True)

    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setattr("platform.machine", lambda: X86)
    path = written(program())
    assert ctl.main(["image", "build", "--agent", str(path)]) == 0
    agent = AgentProgram.read(path)
    assert f"  agent: {agent.described}\n" in capsys.readouterr().out
    assert agent.described.startswith(f"one's own (--agent), {len(program())} bytes, sha256 ")
    read = manifest.read(tmp_path)
    assert read is not None
    assert read.agent == agent.described
    path.write_bytes(b"#!/bin/sh\n")
    assert ctl.main(["image", "build", "--agent", str(path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"kata-ctl: cannot use {path} as the guest's agent: it is not an ELF file")
