"""What the processes of a pod are on the host: read from /proc, and tried by who owns QEMU's monitor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecInterruptedError, ExecuteError

from broker_bed import Bed
from broker_fixtures import BASE, COUNT
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu import allowlist
from kata_hypervisor.qemu.driver import Qemu
from kata_hypervisor.seccomp import readback, syscalls
from kata_hypervisor.seccomp.confinement import inherited_filters
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_runtime.broker.client import Broker
from kata_runtime.broker.process import fork_broker
from process_facts import CAPABILITIES, limit_of, shared_namespaces, status_of
from tables import make_table

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
QEMU = Path("/usr/bin/qemu-system-x86_64")
REFUSED = r"(?i)no such file|not permitted|read-only file|could not (open|configure)|failed|operation not"
MOST_CALLS, HIGHEST_SCORE = 110, 300


@contextlib.asynccontextmanager
async def machine_of(broker: Broker, bed: Bed, **changes: Any) -> AsyncIterator[Qemu]:
    """A QEMU whose virtual CPUs wait."""
    missing = [str(path) for path in (QEMU, IMAGE / "vmlinuz") if not path.exists()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    settings: dict[str, Any] = {"kernel": IMAGE / "vmlinuz", "accelerator": "tcg", "path": QEMU}
    table = QemuHypervisor(**settings)
    spec = {
        "sandbox_id": "p",
        "directory": bed.directory,
        "vcpus": 1,
        "memory_mib": 128,
        "kernel": IMAGE / "vmlinuz",
        "initrd": IMAGE / "kata-initrd.img",
    }
    machine = Qemu(table, broker)
    try:
        await machine.prepare(VmSpec(**{**spec, **changes}))
        yield machine
    finally:
        await machine.stop()


async def test_qemu_has_nothing_of_the_host(bed: Bed, broker: Broker) -> None:
    async with machine_of(broker, bed) as machine:
        pid = machine.processes[0].child.pid
        status = status_of(pid)
        users = set(status["Uid"].split()) | set(status["Gid"].split())
        assert len(users) == 1
        assert BASE <= int(users.pop()) < BASE + COUNT
        assert status["Groups"] == ""
        assert {status[name] for name in CAPABILITIES} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert shared_namespaces(pid, broker.pid) == set()
        assert limit_of(pid, "core file size") == ("0", "0")
        root = Path(f"/proc/{pid}/root")
        assert {path.name for path in root.iterdir()} <= {"dev", "etc", "lib", "lib64", "usr", "var"}
        assert [path.name for path in (root / "etc").iterdir()] == ["ld.so.cache"]
        assert {path.name for path in (root / "dev").iterdir()} == {"null", "urandom"}
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            options = line.split()[5].split(",")
            assert {"ro", "nosuid"} <= set(options), line
            assert "nodev" in options or line.split()[4] == "/dev", line
        with pytest.raises(OSError, match="Read-only file system"):
            (root / "new").touch()


def _backend(kind: str, **data: Any) -> dict[str, Any]:
    return {"id": kind, "backend": {"type": kind, "data": data}}


CONTAINERD, WRITTEN = "containerd.sock", "written"
TAP = "kata-attack"
MONITOR_ATTACKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pmemsave": lambda root: {"val": 0, "size": 4096, "filename": str(root / WRITTEN)},
    "memsave": lambda root: {"val": 0, "size": 4096, "filename": str(root / WRITTEN)},
    "dump-guest-memory": lambda root: {"paging": False, "protocol": f"file:{root / WRITTEN}"},
    "chardev-add file": lambda root: _backend("file", out=str(root / WRITTEN), append=True),
    "chardev-add socket": lambda root: _backend(
        "socket", addr={"type": "unix", "data": {"path": str(root / CONTAINERD)}}, server=False
    ),
    "netdev_add": lambda root: {"type": "tap", "id": "t", "ifname": TAP, "script": "no"},
    "blockdev-add": lambda root: {"driver": "file", "filename": "/etc/shadow", "node-name": "x"},
    "object-add": lambda root: {"qom-type": "rng-random", "id": "r", "filename": "/dev/mem"},
}
"""Each way out that a sealed shim had through a monitor that takes any command. By command and kind."""


@pytest.mark.parametrize("attack", MONITOR_ATTACKS)
async def test_who_owns_qemus_monitor_reaches_nothing(bed: Bed, broker: Broker, attack: str) -> None:
    """QEMU finds nothing in its root, or makes a call that its filter refuses, and ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bed.root / CONTAINERD))
        listener.listen()
        listener.setblocking(False)
        (bed.root / CONTAINERD).chmod(0o777)
        bed.root.chmod(0o777)
        async with machine_of(broker, bed) as machine:
            monitor = machine._monitor
            assert monitor is not None
            with pytest.raises((ExecuteError, ExecInterruptedError)) as caught:
                await monitor._client.execute(attack.partition(" ")[0], MONITOR_ATTACKS[attack](bed.root))
            if isinstance(caught.value, ExecuteError):
                assert re.search(REFUSED, str(caught.value))
            else:
                refused = (
                    r"seccomp: qemu called \w+ \(\d+\) when it had loaded, which policy qemu-x86_64 \[tcg\] "
                )
                assert re.match(refused, (await machine.wait()).reason)
        assert TAP not in os.listdir("/sys/class/net")
        assert not (bed.root / WRITTEN).exists()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_each_thread_of_qemu_is_under_both_filters(bed: Bed, broker: Broker) -> None:
    async with machine_of(broker, bed) as machine:
        threads = await broker.confinement(machine.processes[0].child)
        assert len(threads) > 2
        assert {thread.filters for thread in threads} == {inherited_filters() + 2}
        for thread in threads:
            surface = surface_of(survey(readback.read_filters(thread.tid), syscalls.native()))
            assert surface.allowed < MOST_CALLS
            assert surface.score < HIGHEST_SCORE
            assert (surface.escape, surface.gaps) == ((), ())


async def test_a_kernel_that_is_roots_alone_is_refused_before_the_start(bed: Bed, broker: Broker) -> None:
    kernel = bed.root / "vmlinuz"
    kernel.write_bytes((IMAGE / "vmlinuz").read_bytes())
    kernel.chmod(0o600)
    with pytest.raises(LaunchError, match=f"has mode 0600.*chmod o\\+r {kernel}"):
        async with machine_of(broker, bed, kernel=kernel):
            pass


# -- a child, whatever it is ---------------------------------------------------------------------------------


async def confined(
    broker: Broker, script: str, *, fds: dict[int, int] | None = None, **privileges: Any
) -> tuple[Child, str]:
    """Run a script to its end; return the child and what it wrote."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        tool = Path("/bin/busybox")
        if not tool.exists():
            pytest.skip("needs busybox")
        child = await broker.spawn(
            *("qemu", [str(tool), "sh", "-c", script]),
            fds={1: writer, 2: writer, **(fds or {})},
            privileges=Privileges(**privileges),
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, "r") as output:
        text = await asyncio.to_thread(output.read)
    await child.wait()
    return child, text


async def test_its_own_signals_have_their_effect(broker: Broker) -> None:
    child, _ = await confined(broker, "kill -ABRT $$; exit 3")
    assert child.exited == ExitStatus(signal=signal.SIGABRT)


async def test_it_sees_the_processes_of_its_pod_and_no_devices_but_its_own(broker: Broker) -> None:
    _, text = await confined(broker, "echo /proc/[0-9]*; echo /dev/*; busybox hostname", proc=True)
    processes, devices, *_ = text.splitlines()
    assert len(processes.split()) <= 2
    assert devices == "/dev/null /dev/urandom"
    _, text = await confined(broker, "echo x >/dev/null && echo written; echo /proc/*")
    assert text == "written\n/proc/*\n"


async def test_the_pods_processes_end_with_the_broker(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
    await broker.take_user(BASE, COUNT)
    tool = ["/bin/busybox", "sleep", "1000"]
    if not os.path.exists(tool[0]):
        pytest.skip("needs busybox")
    child = await broker.spawn("qemu", tool, fds={}, privileges=Privileges())
    process = os.pidfd_open(child.pid)
    os.kill(broker.pid, signal.SIGKILL)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    asyncio.get_running_loop().remove_reader(process)
    os.close(process)
    await broker.close()
    from kata_runtime.broker import cleanup

    assert cleanup.clean_up(bed.identity) == []


async def test_a_device_has_a_node_that_is_the_users(bed: Bed, broker: Broker) -> None:
    async with machine_of(broker, bed) as machine:
        pid = machine.processes[0].child.pid
        found = os.stat(f"/proc/{pid}/root/dev/urandom")
        assert (stat.S_IMODE(found.st_mode), found.st_rdev) == (0o600, os.makedev(1, 9))
        assert found.st_uid == int(status_of(pid)["Uid"].split()[0])


async def test_a_file_that_it_opens_again_is_its_own_from_then_on(bed: Bed, broker: Broker) -> None:
    file = bed.root / "disk"
    file.write_bytes(b"before")
    file.chmod(0o4444)
    script = "echo after > /proc/self/fd/5; cat /proc/self/fd/5"
    for written, expected in (((), "before"), ((5,), "after\n")):
        with file.open("rb+") as disk:
            fds = {5: disk.fileno()}
            _, text = await confined(broker, script, proc=True, fds=fds, written=written, file_size=6)
        assert text.endswith(expected), text
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (broker.user, broker.user, 0o644)


async def test_a_file_is_no_larger_than_it_may_be(bed: Bed, broker: Broker) -> None:
    file = bed.root / "disk"
    for size, how in ((0, ExitStatus(signal=signal.SIGXFSZ)), (4096, ExitStatus(code=0))):
        file.write_bytes(b"before")
        with file.open("rb+") as disk:
            fds = {5: disk.fileno()}
            child, _ = await confined(
                broker, "exec cat /proc/self/cmdline >&5", fds=fds, file_size=size, proc=True
            )
        assert child.exited == how
        assert file.read_bytes().startswith(b"before") == (size == 0)


async def test_only_a_regular_file_of_its_own_is_opened_again(broker: Broker) -> None:
    device = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
    try:
        with pytest.raises(LaunchError, match="is neither a regular file nor a pipe"):
            await confined(broker, "true", fds={5: device}, written=(5,))
        with pytest.raises(LaunchError, match="a descriptor that is opened again is not one of fds"):
            await confined(broker, "true", fds={5: device}, written=(6,))
    finally:
        os.close(device)


# -- a QEMU that a guest owns ------------------------------------------------------------------------------

OWNED = Path(__file__).parents[1] / "guests" / "owned_vmm.c"


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that tries what its argument names, once it is told to."""
    if shutil.which("cc") is None:
        pytest.skip("needs cc, which compiles the attacker")
    program = tmp_path_factory.mktemp("owned") / "owned"
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, OWNED], check=True)
    for directory in (program, *program.parents[:3]):
        directory.chmod(0o755)
    return program


class Attacker:
    """The program in place of QEMU, with QEMU's filter and user; it waits."""

    def __init__(self, child: Child, go: int, output: int) -> None:
        self.child = child
        self._go = go
        self._output = output

    async def attack(self) -> str:
        """Let it try; return what it wrote before its end."""
        os.write(self._go, b"g")
        await self.child.wait()
        with os.fdopen(self._output, "rb", closefd=False) as output:
            return output.read().decode()

    def close(self) -> None:
        os.close(self._go)
        os.close(self._output)


@contextlib.asynccontextmanager
async def attacker(broker: Broker, program: Path, attack: str, *, loaded: bool) -> AsyncIterator[Attacker]:
    table = make_table(QemuHypervisor, kernel=program, path=program)
    theirs_go, go = os.pipe2(os.O_CLOEXEC)
    output, theirs_output = os.pipe2(os.O_CLOEXEC)
    try:
        child = await broker.spawn(
            *("qemu", [str(program), attack]),
            fds={0: theirs_go, 1: theirs_output, 2: theirs_output},
            seccomp=allowlist.build(table),
            privileges=Privileges(),
        )
    finally:
        os.close(theirs_go)
        os.close(theirs_output)
    found = Attacker(child, go, output)
    try:
        await asyncio.to_thread(os.read, output, 1)  # its C library has loaded
        if loaded:
            await broker.end_loading(child)
        yield found
    finally:
        found.close()


ESCAPES = {
    "fork": "clone",
    "exec": "execve",
    "socket": "socket",
    "bind": "socket",
    "write": "openat",
    "kill": "kill",
    "namespace": "unshare",
    "ptrace": "ptrace",
}
"""By attack: the call that is refused, at any time."""

LATER = {"execute": "mprotect", "memory": "memfd_create", "device": "openat"}
"""By attack: the call that is refused when it has loaded, and not before."""


@pytest.mark.parametrize("thread", ["", "thread-"])
@pytest.mark.parametrize(("attack", "call"), [*ESCAPES.items(), *LATER.items()])
async def test_what_an_owned_qemu_tries_is_refused_and_named(
    broker: Broker, owned: Path, attack: str, call: str, thread: str
) -> None:
    async with attacker(broker, owned, thread + attack, loaded=True) as one:
        assert "did it" not in await one.attack()
    assert one.child.exited == ExitStatus(signal=signal.SIGKILL)
    assert re.match(
        rf"seccomp: qemu called {call} \(\d+\) when it had loaded, which policy qemu-x86_64 \[kvm\] does not "
        r"allow, and was killed \(kata-ctl seccomp show --driver qemu-kvm prints the policy\); arguments: 0x",
        one.child.violation,
    )


@pytest.mark.parametrize("attack", ["fork", "exec", "socket", "write", "namespace"])
async def test_what_an_owned_qemu_tries_while_it_loads_is_refused_too(
    broker: Broker, owned: Path, attack: str
) -> None:
    async with attacker(broker, owned, attack, loaded=False) as one:
        assert "did it" not in await one.attack()
    assert f"qemu called {ESCAPES[attack]} (" in one.child.violation
    assert "while it was loading" in one.child.violation


@pytest.mark.parametrize("attack", LATER)
async def test_what_loading_takes_is_allowed_until_it_ends(broker: Broker, owned: Path, attack: str) -> None:
    async with attacker(broker, owned, attack, loaded=False) as one:
        assert await one.attack() == "did it\n"
    assert (one.child.exited, one.child.violation) == (ExitStatus(code=0), "")


@pytest.mark.parametrize("thread", ["", "thread-"])
async def test_a_failed_assertion_of_qemu_is_quoted(broker: Broker, owned: Path, thread: str) -> None:
    async with attacker(broker, owned, f"{thread}abort", loaded=True) as one:
        assert 'Assertion `!"owned"\' failed' in await one.attack()
    assert (one.child.exited, one.child.violation) == (ExitStatus(signal=signal.SIGABRT), "")
