"""virtiofsd's two dialects, and the socket that is on disk for no longer than a moment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.children import Children
from kata_hypervisor.errors import ConfinementError, HostUnfitError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.virtiofsd import (
    NAME,
    XATTR_MAP,
    Dialect,
    FileServer,
    command_line,
    dialect_of,
    most_open_files,
    rendezvous,
)
from local_host import LocalHost
from standin_program import write_virtiofsd
from tables import make_table

DAEMON = Path("/v")
SHARED = Path("/run/pod/shared")


@pytest.mark.parametrize(
    ("content", "dialect"),
    [
        (b"\x7fELF...-o announce_submounts  Announce...", Dialect.C),
        (b"\x7fELF...announce_submountsshared-dirtag...", Dialect.RUST),
        (b'#!/bin/sh\nexec /opt/virtiofsd "$@"\n', Dialect.RUST),
    ],
)
def test_the_dialect_is_read_from_the_program(tmp_path: Path, content: bytes, dialect: Dialect) -> None:
    daemon = tmp_path / "virtiofsd"
    daemon.write_bytes(content)
    assert dialect_of(daemon) is dialect


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file or directory"), (b"", "it is empty")])
def test_a_daemon_that_is_none(tmp_path: Path, content: bytes | None, reason: str) -> None:
    daemon = tmp_path / "virtiofsd"
    if content is not None:
        daemon.write_bytes(content)
    with pytest.raises(HostUnfitError, match=f"{reason}.*correct virtio_fs_daemon"):
        dialect_of(daemon)


def test_the_successors_options() -> None:
    assert command_line(DAEMON, Dialect.RUST, SHARED, "never", ("--thread-pool-size=1",)) == [
        "/v",
        "--fd=3",
        "--shared-dir=/run/pod/shared",
        "--cache=never",
        "--sandbox=chroot",
        "--modcaps=-mknod",
        f"--xattrmap={XATTR_MAP}",
        "--xattr",
        "--posix-acl",
        "--announce-submounts",
        "--thread-pool-size=1",
    ]


def test_the_successor_refuses_an_option_that_is_given_twice() -> None:
    for option in ("--announce-submounts", "--xattr", "--posix-acl"):
        assert command_line(DAEMON, Dialect.RUST, SHARED, "auto", (option,)).count(option) == 1


def test_the_predecessors_options() -> None:
    argv = command_line(DAEMON, Dialect.C, SHARED, "never", ("--announce-submounts", "-o", "xattr"))
    assert argv == [
        *("/v", "--fd=3"),
        *("-o", "source=/run/pod/shared"),
        *("-o", "cache=none"),
        *("-o", "announce_submounts"),
        *("-o", "log_level=warn"),
        *("-o", "sandbox=chroot"),
        *("-o", "modcaps=-mknod"),
        *("-o", "xattr"),
        *("-o", f"xattrmap={XATTR_MAP}"),
        *("-o", "posix_acl"),
        *("-o", "xattr"),
    ]


def test_the_predecessors_extended_attributes_can_be_turned_off() -> None:
    argv = command_line(DAEMON, Dialect.C, SHARED, "never", ("-o", "no_xattr,debug"))
    assert not {"xattr", f"xattrmap={XATTR_MAP}", "posix_acl"} & set(argv)
    argv = command_line(DAEMON, Dialect.C, SHARED, "never", ("-ono_posix_acl",))
    assert "xattr" in argv
    assert "posix_acl" not in argv


def test_the_predecessor_cannot_quote_a_comma() -> None:
    with pytest.raises(HostUnfitError, match="no comma in a path"):
        command_line(DAEMON, Dialect.C, Path("/a,cache=always"), "never")


def test_the_connection_waits_in_a_listener_that_has_no_name(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    listener, connection = rendezvous(deep)
    with listener, connection:
        assert os.listdir(deep) == []
        accepted, _ = listener.accept()
        with accepted:
            connection.send(b"x")
            assert accepted.recv(1) == b"x"


def test_a_rendezvous_that_fails_leaves_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        rendezvous(tmp_path / "none")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("", ""),
        (
            "unfiltered",
            "the kernel reports . seccomp filters for thread .* of virtiofsd; .* more than",
        ),
        ("toothless", "the filter of virtiofsd allows every system call"),
    ],
)
async def test_its_filter_is_verified(tmp_path: Path, mode: str, fault: str) -> None:
    table = make_table(QemuHypervisor, kernel=Path("/none"), virtio_fs_daemon=write_virtiofsd(tmp_path, mode))
    host = LocalHost()
    children = Children(host, None)
    server = FileServer(table, children, host)
    assert await server.verify(0) == ()  # there is none
    await server.check()
    listener, connection = rendezvous(tmp_path)
    with listener, connection:
        await server.start(SHARED, listener)
    try:
        if fault:
            with pytest.raises(ConfinementError, match=fault):
                await server.verify(1 if mode == "unfiltered" else 60)
        else:
            assert await server.verify(60) == ()
            await server.check()
            await children[NAME].kill()
            await children[NAME].wait()
            with pytest.raises(ProcessLookupError):
                await server.check()
    finally:
        await children.kill()
        await children.wait()
        await children.ours.aclose()
        await host.aclose()


async def test_what_leads_out_of_it_is_refused_from_its_first_instruction(tmp_path: Path) -> None:
    daemon = tmp_path / "virtiofsd"
    daemon.write_text(f"#!{sys.executable} -IS\nimport os\nos.fork()\n")
    daemon.chmod(0o755)
    host = LocalHost()
    children = Children(host, None)
    table = make_table(QemuHypervisor, kernel=Path("/none"), virtio_fs_daemon=daemon)
    listener, connection = rendezvous(tmp_path)
    with listener, connection:
        await FileServer(table, children, host).start(SHARED, listener)
    assert await children[NAME].wait() == ExitStatus(signal=signal.SIGSYS)
    await children.ours.aclose()
    await host.aclose()


@pytest.mark.parametrize(
    ("extra", "most"),
    [
        ([], 4096),
        (["--rlimit-nofile=2000"], 2000),
        (["--rlimit-nofile", "2000"], 2000),
        (["--rlimit-nofile=9000"], 4096),
        (["--xattr", "-o", "flock", "--rlimit-nofile=0"], 4096),
    ],
)
def test_how_many_files_it_may_have_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nCapEff:\t00000000\n")
    assert most_open_files(extra, proc=tmp_path) == most
