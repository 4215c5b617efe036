"""What the processes of a pod are on the host: read from /proc, and tried by who owns QEMU's monitor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from broker_bed import Bed, make_bed
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu.driver import Qemu
from kata_runtime.broker.client import Broker
from kata_runtime.broker.process import fork_broker

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
QEMU = Path("/usr/bin/qemu-system-x86_64")
BASE, COUNT = 1_900_000_000, 65536
REFUSED = r"(?i)no such file|not permitted|read-only file|could not (open|configure)|failed|operation not"
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


@pytest.fixture
async def broker(bed: Bed) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
    await broker.take_user(BASE, COUNT)
    yield broker
    assert await broker.close() == []


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


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
        for name in ("mnt", "ipc", "uts", "pid", "net"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/{broker.pid}/ns/{name}"), name
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if "core file" in line)
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


async def test_who_owns_qemus_monitor_reaches_nothing(bed: Bed, broker: Broker) -> None:
    """Each way out that a sealed shim had through a monitor that takes any command."""
    containerd = bed.root / "containerd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(containerd))
        listener.listen()
        listener.setblocking(False)
        containerd.chmod(0o777)
        written = bed.root / "written"
        bed.root.chmod(0o777)
        interfaces = set(os.listdir("/sys/class/net"))
        async with machine_of(broker, bed) as machine:
            monitor = machine._monitor
            assert monitor is not None

            def backend(kind: str, **data: Any) -> dict[str, Any]:
                return {"id": kind, "backend": {"type": kind, "data": data}}

            unix = {"addr": {"type": "unix", "data": {"path": str(containerd)}}, "server": False}
            file = {"driver": "file", "filename": "/etc/shadow", "node-name": "x", "read-only": True}
            for command, arguments in (
                ("pmemsave", {"val": 0, "size": 4096, "filename": str(written)}),
                ("memsave", {"val": 0, "size": 4096, "filename": str(written)}),
                ("dump-guest-memory", {"paging": False, "protocol": f"file:{written}"}),
                ("chardev-add", backend("file", out=str(written), append=True)),
                ("chardev-add", backend("socket", **unix)),
                ("netdev_add", {"type": "tap", "id": "t", "ifname": "kata-attack", "script": "no"}),
                ("blockdev-add", file),
                ("object-add", {"qom-type": "rng-random", "id": "r", "filename": "/dev/mem"}),
            ):
                with pytest.raises(ExecuteError, match=REFUSED):
                    await monitor._client.execute(command, arguments)
            assert set(os.listdir("/sys/class/net")) == interfaces
        assert not written.exists()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_kernel_that_is_roots_alone_is_refused_before_the_start(bed: Bed, broker: Broker) -> None:
    kernel = bed.root / "vmlinuz"
    kernel.write_bytes((IMAGE / "vmlinuz").read_bytes())
    kernel.chmod(0o600)
    with pytest.raises(LaunchError, match=f"has mode 0600.*chmod o\\+r {kernel}"):
        async with machine_of(broker, bed, kernel=kernel):
            pass


# -- a child, whatever it is ---------------------------------------------------------------------------------


async def confined(broker: Broker, script: str, **privileges: Any) -> tuple[Child, str]:
    """Run a script to its end; return the child and what it wrote."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        tool = Path("/bin/busybox")
        if not tool.exists():
            pytest.skip("needs busybox")
        child = await broker.spawn(
            *("qemu", [str(tool), "sh", "-c", script]),
            fds={1: writer, 2: writer},
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
