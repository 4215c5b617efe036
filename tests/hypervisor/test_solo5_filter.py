"""The filter of a solo5-hvt that has none of its own: on it before it begins, tight, and explained."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kata_configuration.models.solo5 import Solo5Hvt
from kata_hypervisor.contract import BlockFile, UnikernelSpec, VmExit
from kata_hypervisor.errors import ConfinementError, HostUnfitError, LaunchError
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.seccomp import effectiveness
from kata_hypervisor.seccomp.c_library import GLIBC, MUSL, libc_of
from kata_hypervisor.solo5 import allowlist
from kata_hypervisor.solo5.tender import Hvt
from local_host import LocalHost
from old_tender import COMPILERS, build_old_tender
from solo5_file import entry, manifest_note, unikernel_file

KILLED = ExitStatus(signal=signal.SIGKILL)


@dataclass
class Rig:
    """A tender, a unikernel's file, and what it prints."""

    tender: Path
    spec: UnikernelSpec
    output: socket.socket
    host: LocalHost

    def monitor(self, **table: object) -> Hvt:
        return Hvt(Solo5Hvt(path=self.tender, **table), self.host)  # type: ignore[arg-type]

    async def run(self, line: str, **changes: object) -> VmExit:
        monitor = self.monitor()
        await monitor.prepare(replace(self.spec, command_line=line, **changes))  # type: ignore[arg-type]
        await monitor.run()
        end = await monitor.wait()
        await monitor.stop()
        return end

    def printed(self) -> bytes:
        try:
            return self.output.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


@pytest.fixture(scope="module")
def tenders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    tender = build_old_tender(tmp_path, getattr(request, "param", "glibc"))
    file = tmp_path / "app.hvt"
    file.write_bytes(unikernel_file())
    before = len(os.listdir("/proc/self/fd"))
    descriptor = os.open(file, os.O_RDONLY)
    output, theirs = socket.socketpair()
    host = LocalHost()
    yield Rig(
        tender, UnikernelSpec("one", tmp_path, 64, "app.hvt", descriptor, theirs.fileno()), output, host
    )
    await host.aclose()
    output.close()
    theirs.close()
    os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


every_libc = pytest.mark.parametrize("rig", COMPILERS, indirect=True)


@every_libc
async def test_it_runs(rig: Rig) -> None:
    end = await rig.run("echo words")
    assert (end.status, end.reason) == (ExitStatus(code=0), "solo5-hvt exited: exit status 0")
    assert rig.printed() == b"echo words"


async def test_the_filter_is_on_before_it_begins(rig: Rig) -> None:
    monitor = rig.monitor()
    await monitor.prepare(replace(rig.spec, command_line="echo words"))
    child = rig.host.children["solo5-hvt"]
    (thread,) = await rig.host.confinement(child)
    assert (thread.confined, thread.no_new_privs) == (True, True)
    assert os.readlink(f"/proc/{child.pid}/exe") != str(rig.tender)  # it waits at the gate
    assert rig.printed() == b""
    await monitor.stop()
    assert (await monitor.wait()).requested


async def test_what_waits_at_the_gate_holds_nothing_else(rig: Rig) -> None:
    monitor = rig.monitor()
    await monitor.prepare(rig.spec)
    child = rig.host.children["solo5-hvt"]
    assert sorted(map(int, os.listdir(f"/proc/{child.pid}/fd"))) == [0, 1, 2, 3, 4]
    await monitor.stop()


async def test_a_filter_that_refuses_nothing_is_no_filter(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effectiveness, "are_effective", lambda tid, beyond: False)
    monitor = rig.monitor()
    with pytest.raises(ConfinementError, match="allows each system call that was tried"):
        await monitor.prepare(rig.spec)
    assert rig.host.children["solo5-hvt"].exited is not None


@every_libc
async def test_a_call_while_its_guest_runs_is_named_and_not_made(rig: Rig) -> None:
    end = await rig.run("socket")
    assert end.status == KILLED
    assert end.reason.startswith(
        "seccomp: solo5-hvt called socket (41) when it had loaded, which policy solo5-hvt-x86_64 ["
    )
    assert "kata-ctl seccomp show --driver solo5-hvt-" in end.reason
    assert rig.printed() == b""


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("read /proc/self/fd/4", "openat"),  # what it might do a moment before
        ("write /dev/kvm", "openat"),
        ("exec", "execve"),
        ("executable", "mmap"),
        ("fork", "clone"),
        ("signal", "getppid"),
    ],
)
async def test_nothing_of_loading_is_left_to_it(rig: Rig, line: str, call: str) -> None:
    end = await rig.run(line)
    assert (end.status, f"called {call} (" in end.reason) == (KILLED, True)
    assert "when it had loaded" in end.reason
    assert rig.printed() == b""


@pytest.mark.parametrize(
    ("line", "call", "why"),
    [
        ("read /etc/passwd", "openat", "with the path '/etc/passwd', and"),
        (
            "write /lib/x86_64-linux-gnu/libc.so.6",
            "openat",
            "with the path '/lib/x86_64-linux-gnu/libc.so.6'",
        ),
        ("write /proc/self/fd/4", "openat", "with the path '/proc/self/fd/4'"),
        ("read libc.so.6", "openat", "with the path 'libc.so.6'"),
        ("read /etc/all.sorted", "openat", "with the path '/etc/all.sorted'"),
        ("create /tmp/one", "openat", "arguments:"),
        ("exec", "execve", "arguments:"),
        ("executable", "mmap", "arguments:"),
        ("socket", "socket", "arguments:"),
    ],
)
async def test_loading_is_held_to_what_it_takes(rig: Rig, line: str, call: str, why: str) -> None:
    end = await rig.run(f"early {line}")
    assert (end.status, f"called {call} (" in end.reason) == (KILLED, True)
    assert "while it was loading" in end.reason
    assert why in end.reason
    assert rig.printed() == b""


async def test_a_block_device_is_opened_for_writing(rig: Rig) -> None:
    disk = rig.spec.directory / "disk"
    disk.write_bytes(bytes(512))
    file = rig.spec.directory / "block.hvt"
    file.write_bytes(unikernel_file(manifest=manifest_note(entry("storage", 1))))
    descriptors = [os.open(one, os.O_RDWR) for one in (file, disk)]
    block = BlockFile(descriptors[1])
    end = await rig.run("early write /proc/self/fd/5", file=descriptors[0], block=block)
    assert (end.status, rig.printed()) == (ExitStatus(code=99), b"it was done\n")
    for one in descriptors:
        os.close(one)


@every_libc
async def test_a_failed_assertion_is_told_with_its_words(rig: Rig) -> None:
    end = await rig.run("assert")
    assert end.status == ExitStatus(signal=signal.SIGSEGV)
    assert "the machine is well" in end.reason


async def test_a_program_that_cannot_be_executed_is_told(rig: Rig) -> None:
    monitor = rig.monitor()
    await monitor.prepare(rig.spec)
    rig.tender.write_bytes(b"nothing")
    await monitor.run()
    end = await monitor.wait()
    assert end.status == ExitStatus(code=127)
    assert f"cannot start {rig.tender}: Exec format error" in end.reason
    await monitor.stop()


async def test_without_the_library_that_compiles_it_nothing_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LaunchError("there is no filter")

    monkeypatch.setattr(allowlist, "build", refuse)
    with pytest.raises(LaunchError, match="there is no filter"):
        await rig.monitor().prepare(rig.spec)
    assert rig.host.children["solo5-hvt"].exited is not None  # the one that printed its version


@pytest.mark.parametrize(
    ("kind", "libc"),
    [("glibc", GLIBC), ("glibc, static", GLIBC), ("musl", MUSL), ("musl, static", MUSL)],
)
def test_the_c_library_is_told_from_the_program(tmp_path: Path, kind: str, libc: str) -> None:
    assert libc_of(str(build_old_tender(tmp_path, kind))) == libc


def test_a_program_of_another_kind_has_no_filter(tmp_path: Path) -> None:
    program = bytearray(build_old_tender(tmp_path).read_bytes())
    loader = program.index(b"/lib64/ld-linux")
    other = tmp_path / "other"
    other.write_bytes(program[:loader] + b"/lib64/ld-uclib" + program[loader + 15 :])
    with pytest.raises(HostUnfitError, match="is loaded by /lib64/ld-uclib"):
        libc_of(str(other))
    other.write_bytes(program[:18] + b"\xf3\0" + program[20:])
    with pytest.raises(HostUnfitError, match="is a program for another machine: riscv, 64 bits"):
        libc_of(str(other))
    other.write_bytes(program[:40])
    with pytest.raises(
        HostUnfitError, match=r"ends within its ELF header; .* set path to the program itself"
    ):
        libc_of(str(other))
    with pytest.raises(HostUnfitError, match="cannot read /nonexistent"):
        libc_of("/nonexistent")
