"""virtiofsd's two dialects, and the socket that is on disk for no longer than a moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.virtiofsd import Dialect, command_line, dialect_of, rendezvous

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
        "--modcaps=-mknod",
        "--announce-submounts",
        "--thread-pool-size=1",
    ]


def test_the_successor_refuses_an_option_that_is_given_twice() -> None:
    argv = command_line(DAEMON, Dialect.RUST, SHARED, "auto", ("--announce-submounts",))
    assert argv.count("--announce-submounts") == 1


def test_the_predecessors_options() -> None:
    argv = command_line(DAEMON, Dialect.C, SHARED, "never", ("--announce-submounts", "-o", "xattr"))
    assert argv == [
        *("/v", "--fd=3"),
        *("-o", "source=/run/pod/shared"),
        *("-o", "cache=none"),
        *("-o", "announce_submounts"),
        *("-o", "log_level=warn"),
        *("-o", "modcaps=-mknod"),
        *("-o", "xattr"),
    ]


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
