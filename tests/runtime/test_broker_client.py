"""A whole broker, without a mount namespace and without root: children, streams, directories, every end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import ExitStatus, Host
from kata_hypervisor.kvm.probe import KvmProbeResult, probe_kvm
from kata_runtime.broker import cleanup, messages, processes, server, spawn
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import BrokerLostError, RequestFailedError, RequestRefusedError
from kata_runtime.broker.process import fork_broker
from patience import PATIENCE

PLAIN: dict[str, Any] = {"fds": [], **dict.fromkeys(("environment", "gate", "seccomp", "privileges"))}


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


@asynccontextmanager
async def broker_of(bed: Bed) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    try:
        yield broker
    finally:
        assert await broker.close() == []


def drain(fd: int) -> str:
    """Read a pipe to its end, and close it."""
    with open(fd, encoding="utf-8") as pipe:
        return pipe.read()


async def output_of(broker: Broker, script: str, environment: dict[str, str] | None = None) -> str:
    """What a shell script writes, to the end of its pipe."""
    read, write = os.pipe()
    child = await broker.spawn(
        "qemu", ["/bin/sh", "-c", script], fds={1: write, 2: write}, environment=environment
    )
    os.close(write)
    await child.wait()
    return drain(read)


# -- children ----------------------------------------------------------------------------------------------


async def test_a_broker_is_a_host(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        host: Host = broker
        child = await host.spawn("qemu", ["/bin/sh", "-c", "exit 7"], fds={})
        assert await child.wait() == ExitStatus(code=7) == child.exited
        assert child.name == "qemu"
        await child.kill()  # does nothing any more


async def test_a_signal_is_distinguished_from_an_exit(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        child = await broker.spawn("virtiofsd", ["/bin/sleep", "100"], fds={})
        assert child.exited is None
        await child.kill(signal.SIGTERM)
        assert await child.wait() == ExitStatus(signal=signal.SIGTERM)


async def test_kvm_is_probed_once_by_the_broker(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = bed.data / "calls"

    def probe() -> KvmProbeResult:
        with calls.open("a") as file:
            file.write("x")
        return KvmProbeResult(True, False, "this KVM only emulates")

    monkeypatch.setattr("kata_hypervisor.kvm.probe.probe_kvm", probe)  # the broker is forked with it
    async with broker_of(bed) as broker:
        assert [await broker.missing_kvm_support() for _ in range(3)] == ["this KVM only emulates"] * 3
    assert calls.read_text() == "x"


async def test_what_the_broker_says_of_kvm_is_what_the_probe_finds(bed: Bed) -> None:
    found = probe_kvm()
    async with broker_of(bed) as broker:
        missing = await broker.missing_kvm_support()
    assert missing == ("" if found.runs_unmodified_guests or not found.usable else found.reason)


async def test_many_tasks_may_wait_and_many_children_may_end(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        seen: list[tuple[int, ExitStatus]] = []

        async def run(code: int) -> None:
            child = await broker.spawn("qemu", ["/bin/sh", "-c", f"exit {code}"], fds={})
            seen.append((code, await child.wait()))

        async with anyio.create_task_group() as tasks:
            for code in range(20):
                tasks.start_soon(run, code)
        assert sorted(seen) == [(code, ExitStatus(code=code)) for code in range(20)]


async def test_descriptors_come_under_their_numbers_and_no_others(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        pipes = [os.pipe() for _ in range(4)]
        # Every number that is asked for is also one at which the broker receives another of them.
        numbers = [3, 4, 5, 6, 7, 8, 9, 10, 200]
        fds = {number: pipes[index % 4][1] for index, number in enumerate(reversed(numbers))}
        child = await broker.spawn(
            "qemu",
            ["/bin/bash", "-c", "for n in 3 4 5 6 7 8 9 10 200; do echo $n >&$n; done; ls /proc/self/fd >&3"],
            fds=fds,
        )
        assert await child.wait() == ExitStatus(code=0)
        got = {}
        for index, (read, write) in enumerate(pipes):
            os.close(write)
            got[index] = drain(read).split()
        listing = [str(number) for number in [0, 1, 2, *numbers]]
        assert got[1] == ["6", "10"]
        assert got[2] == ["5", "9"]
        assert got[3] == ["4", "8"]
        assert got[0][:3] == ["3", "7", "200"]
        # ls itself opens the directory, at the lowest number that is free.
        assert sorted(got[0][3:], key=int) == sorted([*listing, "11"], key=int)


# The C library keeps signals 32 and 33 for itself; GNU make leaves them ignored in what it starts.
LIBC_SIGNALS = 3 << 31


async def test_a_child_starts_clean(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the shim")
    script = 'env; pwd; readlink /proc/self/fd/0; grep -E "Sig(Blk|Ign)" /proc/self/status'
    async with broker_of(bed) as broker:
        lines = (await output_of(broker, script)).splitlines()
        assert not [line for line in lines if line.startswith("SECRET")]
        assert [line for line in lines if line.startswith("PATH=")]
        assert "/" in lines
        assert "/dev/null" in lines
        masks = [int(line.split()[1], 16) for line in lines if line.startswith("Sig")]
        assert [mask & ~LIBC_SIGNALS for mask in masks] == [0, 0]
        lines = (await output_of(broker, "/usr/bin/env", {"ONLY": "this"})).splitlines()
        assert {line for line in lines if not line.startswith(("PWD=", "SHLVL=", "_=", "OLDPWD="))} == {
            "ONLY=this"
        }


async def test_a_child_holds_nothing_of_the_callers(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        read, write = os.pipe()
        child = await broker.spawn("qemu", ["/bin/sleep", "100"], fds={1: write})
        os.close(write)
        await child.kill()
        await child.wait()
        assert os.read(read, 1) == b""  # the end of file: the broker keeps no copy either
        os.close(read)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "No such file or directory"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_text("#!/bin/sh\n"), "not executable"),
        (
            lambda path: (path.write_text("#!/no/such/shell\n"), path.chmod(0o755)),
            "No such file or directory",
        ),
        (lambda path: (path.write_bytes(b"\x7fELF nonsense"), path.chmod(0o755)), "Exec format error"),
    ],
)
async def test_what_cannot_be_started_says_why(bed: Bed, make: object, message: str) -> None:
    program = bed.data / "program"
    if callable(make):
        make(program)
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match=rf"^cannot start qemu: {program}: {message}$"):
            await broker.spawn("qemu", [str(program)], fds={})
        child = await broker.spawn("qemu", ["/bin/true"], fds={})  # nothing of the failure is in the way
        assert await child.wait() == ExitStatus(code=0)


def test_a_descriptor_that_somebody_left_inheritable_goes_to_no_child() -> None:
    read, write = os.pipe()
    stray = os.dup(read)
    os.set_inheritable(stray, True)
    pid = spawn.spawn("qemu", ["/bin/ls", "/proc/self/fd"], {1: write}, None, lambda pid, start: None)
    os.close(write)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert drain(read).split() == ["0", "1", "2", "3"]  # the last is the directory that ls reads
    os.close(stray)


@pytest.mark.parametrize(("name", "argv"), [("bash", ["/bin/bash"]), ("qemu", ["qemu"]), ("qemu", [])])
async def test_what_breaks_the_schema_is_not_started(bed: Bed, name: str, argv: list[str]) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="may not be"):
            await broker.spawn(name, argv, fds={})


async def test_a_command_line_too_long_for_the_channel_is_refused(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(LaunchError, match="too long"):
            await broker.spawn("qemu", ["/bin/true", "x" * messages.MAX_BYTES], fds={})


async def test_what_the_kernel_reports_of_a_child(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        child = await broker.spawn("qemu", ["/bin/sleep", "100"], fds={})
        (thread,) = await broker.confinement(child)
        assert (thread.tid, thread.name) == (child.pid, "sleep")
        await child.kill()
        await child.wait()
        with pytest.raises(ProcessLookupError):
            await broker.confinement(child)


async def test_no_process_but_a_child_can_be_signalled(bed: Bed) -> None:
    victim = Shim(bed, lambda channel: ask(channel, "kill", pid=os.getppid(), signal=9), namespace=False)
    assert victim.result == {"id": 1, "result": {}}  # and we are still here
    victim.kill()
    wait_for_end(victim.broker)


async def test_grandchildren_are_adopted_and_collected(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        pid = int(await output_of(broker, "sleep 0.05 >/dev/null 2>&1 & echo $!"))
        wait_for_end(pid)
        await broker.oom_kills()  # the broker is back in its loop
        child = await broker.spawn("qemu", ["/bin/true"], fds={})
        await child.wait()  # reported after all that had exited before it
        assert not os.path.exists(f"/proc/{pid}")


async def test_a_cancelled_caller_leaves_no_child_behind_it_does_not_know(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        children = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            children.append(await broker.spawn("qemu", ["/bin/sleep", "100"], fds={}))
        assert scope.cancel_called
        assert len(children) == 1
        assert os.path.exists(f"/proc/{children[0].pid}")


# -- directories and streams -------------------------------------------------------------------------------


async def test_directories_are_made_and_removed_by_name(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await broker.make_directory(bed.shared)
        await broker.make_directory(f"{bed.shared}/c1/rootfs")
        await broker.make_directory(f"{bed.shared}/c1/rootfs")
        assert os.path.isdir(f"{bed.shared}/c1/rootfs")
        with pytest.raises(RequestFailedError) as caught:
            await broker.remove(f"{bed.shared}/c1")
        assert caught.value.errno == errno.ENOTEMPTY
        await broker.remove(f"{bed.shared}/c1/rootfs")
        await broker.remove(f"{bed.shared}/c1")
        assert os.listdir(bed.shared) == []


async def test_what_the_broker_did_not_make_it_does_not_remove(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await broker.make_directory(f"{bed.shared}/c1")
        foreign = Path(bed.shared, "c1", "foreign")
        foreign.touch()
        for path in (str(foreign), str(bed.bundle / "rootfs"), f"{bed.shared}/never"):
            with pytest.raises(RequestRefusedError, match="not made by this broker"):
                await broker.remove(path)
        with pytest.raises(RequestRefusedError, match="not mounted by this broker"):
            await broker.unmount(f"{bed.shared}/c1")
        foreign.unlink()


@pytest.mark.parametrize("path", ["/etc/kata", "{shared}/../x", "{bundle}/x", "{directory}/x", "{shared}x/y"])
async def test_nothing_is_made_outside_of_the_sandbox(bed: Bed, path: str) -> None:
    full = path.format(shared=bed.shared, bundle=bed.bundle, directory=bed.directory)
    async with broker_of(bed) as broker:
        with pytest.raises(RequestRefusedError, match="not below the sandbox's"):
            await broker.make_directory(full)
        with pytest.raises(RequestRefusedError, match="not below the sandbox's"):
            await broker.bind(str(bed.data), full, readonly=True)
        with pytest.raises(RequestRefusedError, match="not below the sandbox's"):
            await broker.mount(full, [("overlay", "overlay", [])])
    assert not os.path.exists(full)


async def test_a_fifo_is_opened_without_waiting(bed: Bed) -> None:
    fifo = str(bed.data / "fifo")
    os.mkfifo(fifo)
    async with broker_of(bed) as broker:
        with pytest.raises(RequestFailedError) as caught:
            await broker.open_fifo(fifo, "w")
        assert caught.value.errno == errno.ENXIO
        reader = await broker.open_fifo(fifo, "r")
        writer = await broker.open_fifo(fifo, "w")
        both = await broker.open_fifo(fifo, "rw")
        os.write(writer, b"hello")
        assert os.read(reader, 10) == b"hello"
        assert not any(os.get_blocking(fd) or os.get_inheritable(fd) for fd in (reader, writer, both))
        messages.close_all([reader, writer, both])


async def test_only_a_fifo_is_a_fifo_and_only_a_file_is_a_log(bed: Bed) -> None:
    file, link, fifo = bed.data / "file", bed.data / "link", bed.data / "fifo"
    file.write_text("old\n")
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    async with broker_of(bed) as broker:
        for path in ("/dev/zero", str(file), str(link), str(bed.data)):
            with pytest.raises(RequestRefusedError, match="not a FIFO"):
                await broker.open_fifo(path, "r")
        with pytest.raises(RequestFailedError, match="No such file"):
            await broker.open_fifo(str(bed.data / "none"), "r")
        for path in ("/dev/null", str(link), str(bed.data)):
            with pytest.raises(RequestRefusedError, match=f"{path} is not a regular file"):
                await broker.open_log(path)
        for log in (file, bed.data / "new"):
            fd = await broker.open_log(str(log))
            os.write(fd, b"line\n")
            os.close(fd)
    assert file.read_text() == "old\nline\n"
    assert (bed.data / "new").read_text() == "line\n"
    assert stat.S_IMODE((bed.data / "new").stat().st_mode) == 0o640


# -- every end ---------------------------------------------------------------------------------------------


async def test_close_ends_children_and_removes_everything(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        child = await broker.spawn("qemu", ["/bin/sleep", "100"], fds={})
        await broker.make_directory(f"{bed.shared}/c1/rootfs")
        (bed.directory / "qmp.sock").touch()
        Path(bed.identity.socket).touch()
        assert await broker.close() == []
        assert child.exited == ExitStatus(signal=signal.SIGKILL)
        assert not bed.directory.exists()
        assert not Path(bed.identity.socket).exists()
        assert not broker.lost.is_set()
        assert os.waitpid(broker.pid, os.WNOHANG) == (broker.pid, 0)  # noqa: ASYNC222
        assert await broker.close() == []
        with pytest.raises(BrokerLostError):
            await broker.make_directory(f"{bed.shared}/c2")


async def test_all_who_close_at_once_are_answered_before_the_shim_ends(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients may ask a sealed shim for its shutdown, and its broker ends after it."""
    monkeypatch.setattr(processes, "GRACE", 10 * PATIENCE)
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    log = await broker.relay_log()
    answers: list[list[str]] = []

    async def close() -> None:
        answers.append(await broker.close())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as closers:
            for _ in range(3):
                closers.start_soon(close)
        assert await broker.close() == []
    assert answers == [[], [], []]
    assert os.waitpid(broker.pid, os.WNOHANG) == (0, 0)  # noqa: ASYNC222 - it does not wait
    os.close(log)
    wait_for_end(broker.pid, PATIENCE)


async def test_close_ends_what_children_have_left_behind(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        pids = (
            await output_of(broker, "for n in 1 2 3; do setsid sleep 100 >/dev/null 2>&1 & echo $!; done")
        ).split()
        assert len(pids) == 3
        await broker.close()
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


async def test_what_cannot_be_undone_is_reported_and_can_be_tried_again(bed: Bed) -> None:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    await broker.make_directory(f"{bed.shared}/c1")
    foreign = Path(bed.shared, "c1", "foreign")
    foreign.touch()
    left = await broker.close()
    assert left == [f"cannot undo remove {bed.shared}/c1: [Errno 39] Directory not empty: 'c1'"]
    assert len(cleanup.clean_up(bed.identity)) == 1
    assert foreign.exists()
    foreign.unlink()
    assert cleanup.clean_up(bed.identity) == []
    assert not bed.directory.exists()


async def test_a_dead_broker_is_noticed_and_its_children_die_with_it(bed: Bed) -> None:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    child = await broker.spawn("qemu", ["/bin/sleep", "100"], fds={})
    os.kill(broker.pid, signal.SIGKILL)
    with anyio.fail_after(20):
        await broker.lost.wait()
    assert await child.wait() == ExitStatus(signal=signal.SIGKILL)
    wait_for_end(child.pid)
    with pytest.raises(LaunchError, match="has exited"):
        await broker.spawn("qemu", ["/bin/true"], fds={})
    await child.kill()
    assert await broker.close() == []
    assert bed.journal.exists()
    assert cleanup.clean_up(bed.identity) == []  # and this process, its shim, survives


async def test_a_request_that_waits_fails_when_the_broker_dies(bed: Bed) -> None:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    await broker.make_directory(bed.shared)
    os.kill(broker.pid, signal.SIGSTOP)

    async def ask_for_more() -> None:
        with pytest.raises(BrokerLostError):
            await broker.oom_kills()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_for_more)
            await anyio.wait_all_tasks_blocked()
            os.kill(broker.pid, signal.SIGKILL)
    await broker.close()
    assert cleanup.clean_up(bed.identity) == []


async def test_a_broker_that_cannot_start_says_why(bed: Bed) -> None:
    bed.bundle.joinpath("rootfs").rmdir()
    bed.bundle.rmdir()
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    with pytest.raises(
        BrokerLostError, match=r"broker of sandbox sandbox cannot start: .*No such file.*bundle"
    ):
        await broker.make_directory(bed.shared)
    await broker.close()
    assert cleanup.clean_up(bed.identity) == []


def start_children(bed: Bed, channel: socket.socket) -> list[int]:
    pids = [
        ask(channel, "spawn", name=name, argv=["/bin/sleep", "100"], **PLAIN)["result"]["pid"]
        for name in ("virtiofsd", "qemu")
    ]
    assert "result" in ask(channel, "make_directory", path=f"{bed.shared}/c1/rootfs")
    return pids


def test_a_killed_shim_leaves_nothing(bed: Bed) -> None:
    shim = Shim(bed, lambda channel: start_children(bed, channel), namespace=False)
    Path(bed.identity.socket).touch()
    assert bed.directory.exists()
    shim.kill()
    wait_for_end(shim.broker)
    for pid in shim.result:
        wait_for_end(pid)
    assert not bed.directory.exists()
    assert not Path(bed.identity.socket).exists()


def test_a_hostile_packet_ends_the_sandbox(bed: Bed) -> None:
    shim = Shim(bed, lambda channel: (start_children(bed, channel), channel.send(b"]"))[0], namespace=False)
    wait_for_end(shim.broker)
    for pid in shim.result:
        wait_for_end(pid)
    assert not bed.directory.exists()
    shim.kill()


@pytest.mark.parametrize("dead", ["none", "shim", "broker", "both"])
def test_delete_works_in_every_state(bed: Bed, dead: str) -> None:
    shim = Shim(bed, lambda channel: start_children(bed, channel), namespace=False)
    Path(bed.identity.socket).touch()
    (bed.directory / "qmp.sock").touch()
    if dead in ("broker", "both"):
        os.kill(shim.broker, signal.SIGKILL)
    if dead in ("shim", "both"):
        os.kill(shim.pid, signal.SIGKILL)
    assert cleanup.clean_up(bed.identity) == []
    for pid in (shim.pid, shim.broker, *shim.result):
        wait_for_end(pid)
    os.waitpid(shim.pid, 0)
    assert not bed.directory.exists()
    assert not Path(bed.identity.socket).exists()
    assert cleanup.clean_up(bed.identity) == []


def test_a_broker_that_does_not_finish_is_killed(bed: Bed) -> None:
    shim = Shim(bed, lambda channel: start_children(bed, channel), namespace=False)
    os.kill(shim.broker, signal.SIGSTOP)
    assert cleanup.clean_up(bed.identity, timeout=0.1) == []
    for pid in (shim.pid, shim.broker, *shim.result):
        wait_for_end(pid)
    os.waitpid(shim.pid, 0)


async def test_a_second_broker_of_the_same_sandbox_is_refused(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker_of(bed) as broker:
        await broker.make_directory(bed.shared)
        monkeypatch.setattr(cleanup, "LOCK_TIMEOUT", 0.1)
        second = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
        with pytest.raises(BrokerLostError, match="in use"):
            await second.make_directory(f"{bed.shared}/c1")
        await second.close()


async def test_a_new_broker_undoes_what_a_killed_one_left(bed: Bed) -> None:
    shim = Shim(bed, lambda channel: start_children(bed, channel), namespace=False)
    os.kill(shim.broker, signal.SIGKILL)
    shim.kill()
    (bed.directory / "record.json").touch()  # the new shim may have begun to write
    async with broker_of(bed) as broker:
        await broker.make_directory(f"{bed.shared}/c2")
        assert os.listdir(bed.shared) == ["c2"]
        assert (bed.directory / "record.json").exists()


async def test_a_directory_that_others_may_enter_is_refused(bed: Bed) -> None:
    bed.directory.mkdir(mode=0o755, parents=True)
    bed.directory.chmod(0o755)
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
    with pytest.raises(BrokerLostError, match="not private"):
        await broker.make_directory(bed.shared)
    await broker.close()
    bed.directory.rmdir()


async def test_signals_that_end_a_service_do_not_end_the_broker(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await broker.make_directory(bed.shared)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(broker.pid, number)
        await broker.make_directory(f"{bed.shared}/c1")


async def test_the_broker_keeps_nothing_of_the_shim(bed: Bed) -> None:
    secret = os.open(bed.data, os.O_PATH)
    async with broker_of(bed) as broker:
        await broker.make_directory(bed.shared)
        links = {os.readlink(f"/proc/{broker.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{broker.pid}/fd")}
        assert str(bed.data) not in links
        assert Path(f"/proc/{broker.pid}/comm").read_text() == "kata-broker\n"
        assert os.getsid(broker.pid) == broker.pid
        assert len(links) < 12
    os.close(secret)


# -- processes ---------------------------------------------------------------------------------------------


def test_a_process_is_ended_by_identity_only() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    start = processes.start_time(pid)
    assert processes.end(pid, start + 1)
    assert processes.is_alive(pid, start)
    assert processes.end(pid, start)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not processes.is_alive(pid, start)
    assert processes.end(pid, start)
    with pytest.raises(ProcessLookupError):
        processes.start_time(pid)


async def test_a_bundle_that_is_removed_is_reported_again_and_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK", 0.01)
    async with broker_of(bed) as broker:
        with anyio.move_on_after(0.1):
            await broker.bundle_gone()
            raise AssertionError("it is there")
        shutil.rmtree(bed.bundle)
        with anyio.fail_after(20):
            await broker.bundle_gone()
            await broker.bundle_gone()
        bed.bundle.mkdir()  # another one of its name is not it
        with anyio.fail_after(20):
            await broker.bundle_gone()
