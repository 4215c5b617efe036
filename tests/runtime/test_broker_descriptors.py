"""What a descriptor is, and that one of a kind on no list is found."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_hypervisor import libc
from kata_runtime.broker import descriptors
from kata_runtime.broker.descriptors import OF_BROKER, OF_SHIM, OF_SHIM_WITH_MACHINE, find_unlisted, kind_of
from kata_runtime.confinement.reading import read_descriptors


def make_fifo(directory: Path) -> int:
    os.mkfifo(directory / "fifo")
    return os.open(directory / "fifo", os.O_RDWR)


def make_epoll() -> int:
    with select.epoll() as made:
        return os.dup(made.fileno())


def make_socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def make_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


MAKERS: dict[str, Callable[[Path], int]] = {
    "unix socket": lambda _: make_socket(),
    "netlink socket": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach(),
    "inet socket": lambda _: socket.socket(socket.AF_INET).detach(),
    "pipe": lambda _: make_pipe(),
    "FIFO": make_fifo,
    "eventfd": lambda _: os.eventfd(0),
    "eventpoll": lambda _: make_epoll(),
    "pidfd": lambda _: os.pidfd_open(os.getpid()),
    "memory": lambda _: os.memfd_create("guest"),
    "directory": lambda directory: os.open(directory, os.O_PATH),
    "file": lambda directory: os.open(directory / "a", os.O_RDWR | os.O_CREAT),
    "file to append to": lambda directory: os.open(directory / "a", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    "namespace": lambda _: os.open("/proc/self/ns/mnt", os.O_RDONLY),
    "/dev/null": lambda _: os.open("/dev/null", os.O_RDWR),
    "/dev/zero": lambda _: os.open("/dev/zero", os.O_RDWR),
}


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    number = MAKERS[request.param](tmp_path)
    yield request.param, number
    os.close(number)


def test_each_kind_is_told_from_the_others(made: tuple[str, int]) -> None:
    kind, number = made
    assert kind_of(os.getpid(), number) == kind
    assert descriptors.kinds(os.getpid())[number] == kind


@pytest.mark.skipif(os.geteuid() != 0, reason="mknod needs root")
def test_a_device_is_known_by_its_number_and_not_by_its_path(tmp_path: Path) -> None:
    """One that is opened behind a mount of its own has no path, and a path may be anybody's."""
    os.mknod(tmp_path / "kvm", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    for number in (libc.open_node("/dev/zero", os.O_RDWR), os.open(tmp_path / "kvm", os.O_RDWR)):
        assert kind_of(os.getpid(), number) == "/dev/zero"
        os.close(number)
    null = libc.open_node("/dev/null", os.O_RDWR)
    before = read_descriptors(os.getpid())
    os.close(null)
    assert before.get("null", 0) == read_descriptors(os.getpid()).get("null", 0) + 1


def test_one_that_is_closed_is_nothing() -> None:
    assert kind_of(os.getpid(), 12345) == ""


def test_a_kind_on_no_list_is_found_with_what_it_is(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_PATH)
    pipe = subprocess.PIPE
    process = subprocess.Popen(["cat"], pass_fds=[number], stdin=pipe, stdout=pipe, bufsize=0)
    os.close(number)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"!")
        assert process.stdout.read(1) == b"!"  # it has started, and opens nothing more
        others = set(descriptors.kinds(process.pid).values()) - {"directory"}
        nothing = find_unlisted(process.pid, {*others, "directory"})
        found = find_unlisted(process.pid, others)
        process.kill()
    assert nothing is None
    assert found == f"descriptor {number} is of a kind that is on no list: directory ({tmp_path})"


def test_nothing_on_a_shims_list_leads_to_files_or_configures_the_network() -> None:
    ways_out = {"directory", "namespace", "netlink socket", "family 17 socket", "block device"}
    ways_out |= {"file", "file to append to"}  # which virtiofsd could make a program of root's
    assert not ways_out & OF_SHIM.keys()
    assert not (ways_out - {"block device", "file"}) & OF_SHIM_WITH_MACHINE.keys()
    assert all((OF_SHIM | OF_SHIM_WITH_MACHINE | OF_BROKER).values())
