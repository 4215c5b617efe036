"""What the processes of VMMs with a REST interface are on the host, and what their API is good for.

The programs are stand-ins. The real ones are tried besides, where KATA_TEST_FIRECRACKER, KATA_TEST_JAILER and
KATA_TEST_CLOUD_HYPERVISOR name them, with guests that any KVM can run.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import wide_filters
from broker_bed import Bed, make_bed
from broker_fixtures import BASE, COUNT
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor import host_checks, registry
from kata_hypervisor.contract import (
    MEMORY_STEP_MIB,
    Disk,
    Hypervisor,
    MachineSize,
    SharedDirectory,
    UnikernelSpec,
    VmSpec,
)
from kata_hypervisor.errors import HypervisorError, LaunchError, NotSupportedError, SnapshotError
from kata_hypervisor.firecracker.unikernel import FirecrackerUnikernel
from kata_hypervisor.rest_machine import RestMachine
from kata_runtime.broker import image_cache, supervisor
from kata_runtime.broker.client import Broker
from kata_runtime.broker.log_sink import take_fatal_message
from kata_runtime.broker.process import fork_broker
from kata_runtime.confinement import judging, reading, rows
from loop_devices import SIZE, loop_device, number_of
from patience import PATIENCE
from standin_program import StandInProgram, write_virtiofsd
from tiny_guest import SPIN, say, say_cpuid
from tiny_guest import kernel as tiny_kernel
from unikernel import build_bare

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FIRECRACKER = os.environ.get("KATA_TEST_FIRECRACKER", "")
REAL = {"clh": os.environ.get("KATA_TEST_CLOUD_HYPERVISOR", ""), "firecracker": FIRECRACKER}
JAILER = os.environ.get("KATA_TEST_JAILER", "")
KINDS = {"clh": "cloud-hypervisor", "firecracker": "firecracker"}
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
IMAGE = "a" * 64
# What opens something by a path, in the words of each interface.
ATTACKS = {
    "clh": [
        ("/api/v1/vm.add-disk", {"path": "/etc/shadow", "readonly": True}),
        ("/api/v1/vm.snapshot", {"destination_url": "file:///etc/cron.d"}),
        ("/api/v1/vm.coredump", {"destination_url": "file:///etc/cron.d"}),
        ("/api/v1/vm.add-fs", {"tag": "x", "socket": "/run/containerd/containerd.sock"}),
        ("/api/v1/vm.add-vsock", {"cid": 3, "socket": "/run/x"}),
        ("/api/v1/vm.add-net", {"tap": "tap0"}),
        ("/api/v1/vm.create", {"payload": {"kernel": "/etc/shadow"}}),
    ],
    "firecracker": [
        ("/drives/spare0", {"drive_id": "spare0", "path_on_host": "/etc/shadow"}),
        ("/snapshot/create", {"snapshot_type": "Full", "snapshot_path": "/etc/x", "mem_file_path": "/etc/y"}),
        ("/logger", {"log_path": "/etc/cron.d/x"}),
        ("/metrics", {"metrics_path": "/etc/cron.d/x"}),
        ("/boot-source", {"kernel_image_path": "/etc/shadow"}),
        ("/vsock", {"guest_cid": 3, "uds_path": "/run/x"}),
    ],
}


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A sandbox whose broker, which ends a pod, spares the shim: it is this process."""
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    wide_filters.allow_scripts(monkeypatch)
    monkeypatch.setattr(supervisor.Supervisor, "_kill", lambda self: None)
    with make_bed(monkeypatch) as made:
        monkeypatch.setattr(image_cache, "CACHE", str(made.root / "cache"))
        (made.root / "cache").mkdir(mode=0o700)
        yield made


@dataclass
class Ground:
    """A VMM, or what stands in for one, and machines in it, with a real broker."""

    name: str
    bed: Bed
    broker: Broker
    real: bool = False

    def __post_init__(self) -> None:
        record = self.bed.directory / "vmm" / "record.jsonl"
        self.program = StandInProgram(self.bed.root, KINDS[self.name], record=record)
        (self.bed.root / "kernel").write_bytes(tiny_kernel(say(b"hello\n") + SPIN, pvh=True))
        (self.bed.root / "initrd").write_bytes(bytes(4096))
        (self.bed.root / "cache" / f"{IMAGE}.erofs").write_bytes(b"an image")

    async def started(self, **places: Any) -> RestMachine:
        """A machine that runs. places: `template`, `saved_to`."""
        path = REAL[self.name] if self.real else self.program.path
        values: dict[str, Any] = {"path": path, "kernel": self.bed.root / "kernel"}
        table: Any = Firecracker(**values)
        if self.name == "clh":
            table = CloudHypervisor(virtio_fs_daemon=write_virtiofsd(self.bed.root), **values)
        machine = registry.create(self.name, table, self.broker)
        assert isinstance(machine, RestMachine)
        root = self.bed.root
        spec = VmSpec("pod", self.bed.directory, 1, 128, root / "kernel", initrd=root / "initrd", **places)
        if self.name == "clh" and not self.real:
            await machine.prepare(replace(spec, shared=SharedDirectory(Path(self.bed.shared))))
        else:
            await machine.prepare(replace(spec, spare_disks=2))
        await machine.run()
        return machine


@pytest.fixture(params=list(KINDS))
def ground(request: pytest.FixtureRequest, bed: Bed, broker: Broker) -> Ground:
    return Ground(request.param, bed, broker)


async def is_saved(machine: Hypervisor, directory: Path) -> bool:
    """Save a machine; whether this host's KVM can: one that only emulates lacks KVM_GET_NESTED_STATE."""
    try:
        await machine.snapshot(directory)
    except SnapshotError as error:
        assert "GetNestedState" in str(error)
        return False
    return True


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def pid_of(machine: RestMachine | FirecrackerUnikernel) -> int:
    """The VMM's."""
    return next(process.child.pid for process in machine.processes if process.role == "vmm")


def weaknesses(role: str, pid: int, broker: Broker) -> list[str]:
    """What of a process is weaker than its row says."""
    here = reading.read_place(os.getpid())
    found = judging.find_weaknesses(rows.row_of(role), reading.read(pid), here, user=broker.user)
    return [str(weakness) for weakness in found]


def assert_nothing_of_the_host(
    pid: int, broker: Broker, directory: Path, devices: set[str], *own: Path
) -> None:
    """See the process's own view, and what it is. own: what it may write besides its directory."""
    status = status_of(pid)
    assert set(status["Uid"].split()) | set(status["Gid"].split()) == {str(broker.user)}
    assert BASE <= broker.user < BASE + COUNT
    assert status["Groups"] == ""
    assert {status[name] for name in CAPABILITIES} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    for name in ("mnt", "ipc", "uts", "pid", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/{broker.pid}/ns/{name}"), name
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if "core file" in line)
    root = Path(f"/proc/{pid}/root")
    assert [path.name for path in (root / "etc").iterdir()] == ["ld.so.cache"]
    assert {path.name for path in (root / "dev").rglob("*") if not path.is_dir()} == devices
    writable = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        place, options = line.split()[4], set(line.split()[5].split(","))
        assert "nosuid" in options, line
        assert "nodev" in options or place == "/dev", line
        if "ro" not in options and place != "/proc":
            assert "noexec" in options, line
            writable.append(place)
    assert writable == [f"{directory}/vmm", *map(str, own)]
    found = os.stat(f"{root}{directory}/vmm")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (broker.user, broker.user, 0o700)
    with pytest.raises(OSError, match="No space left"):
        (root / f"{directory}/vmm/large".lstrip("/")).write_bytes(bytes(2 << 20))


async def test_it_has_nothing_of_the_host(ground: Ground) -> None:
    machine = await ground.started()
    directory, pid = ground.bed.directory, pid_of(machine)
    devices = {"null", "kvm", *(["urandom"] if ground.name == "clh" else [])}
    assert_nothing_of_the_host(pid, ground.broker, directory, devices)
    assert weaknesses(KINDS[ground.name], pid, ground.broker) == []
    assert not (directory / "vmm" / "record.jsonl").exists()  # nobody else sees its directory
    guest, _ = await machine.transport.connect(1024)
    with guest:
        await asyncio.get_running_loop().sock_sendall(guest, b"echo")
        assert await asyncio.get_running_loop().sock_recv(guest, 100) == b"echo"
    assert machine.console_tail == "hello from the guest"
    await machine.stop()


async def test_who_listens_for_a_vmm_waits_for_it(bed: Bed, broker: Broker) -> None:
    with await broker.listen_for_vmm(bed.directory / "vmm" / "fs.sock") as listener:
        assert os.get_blocking(listener.fileno())


async def test_a_disk_that_comes_later_is_all_that_appears(ground: Ground) -> None:
    machine = await ground.started()
    disks = Path(f"/proc/{pid_of(machine)}/root{ground.bed.directory}/disks")
    image = Path(image_cache.CACHE, f"{IMAGE}.erofs")
    for _ in range(3):
        await machine.add_disk(Disk("rootfs_1", image, read_only=True))
        await machine.add_disk(Disk("rootfs_2", image, read_only=True))
        assert {path.name: path.read_bytes() for path in disks.iterdir()} == {
            "rootfs_1": b"an image",
            "rootfs_2": b"an image",
        }
        with pytest.raises(OSError, match="Read-only file system"):
            (disks / "rootfs_1").write_bytes(b"x")
        await machine.remove_disk("rootfs_1")
        assert [path.name for path in disks.iterdir()] == ["rootfs_2"]
        await machine.remove_disk("rootfs_2")
    for path in (Path("/etc/shadow"), Path(image_cache.CACHE, "x.erofs")):
        with pytest.raises(Exception, match=r"cannot plug|may not be"):
            await machine.add_disk(Disk("rootfs_3", path, read_only=True))
    with pytest.raises(LaunchError, match="No such file"):
        await machine.add_disk(Disk("rootfs_3", Path(image_cache.CACHE, f"{'b' * 64}.erofs"), read_only=True))
    with pytest.raises(NotSupportedError, match=r"read-only an image|later disks are read-only"):
        await machine.add_disk(Disk("rootfs_3", image))
    assert list(disks.iterdir()) == []
    await machine.pause()
    await machine.resume()
    await machine.stop()


@pytest.mark.parametrize("write", [True, False])
async def test_a_device_that_comes_later_is_a_node_for_the_vmm_alone(
    bed: Bed, broker: Broker, write: bool
) -> None:
    ground = Ground("clh", bed, broker)
    machine = await ground.started()
    disks = Path(f"/proc/{pid_of(machine)}/root{bed.directory}/disks")
    with loop_device(bed.root / "file") as device:
        number = number_of(device)
        disk = Disk("device_1", Path("/dev/block", number), read_only=not write)
        with pytest.raises(LaunchError, match=r"no config\.json of the sandbox names it"):
            await machine.add_disk(disk)
        await broker.read_spec(str(with_device(bed.bundle, number, write=write)))
        (bed.root / "file").write_bytes(b"content".ljust(SIZE, b"\0"))
        await machine.add_disk(disk)
        node = disks / "device_1"
        found = node.stat()
        assert (stat.S_ISBLK(found.st_mode), found.st_rdev) == (True, device.stat().st_rdev)
        assert (found.st_uid, found.st_gid) == (broker.user, broker.user)
        assert stat.S_IMODE(found.st_mode) == (0o600 if write else 0o400)
        opened = os.open(node, os.O_RDONLY)  # its mount lets it be opened, though that of the others does not
        assert os.read(opened, 7) == b"content"
        os.close(opened)
        with pytest.raises(OSError, match="busy"):
            os.open(device, os.O_RDONLY | os.O_EXCL)
        for again in (True, False):  # a later container of the pod may have it, and nobody else
            await machine.remove_disk("device_1")
            assert list(disks.iterdir()) == []
            with pytest.raises(OSError, match="busy"):
                os.open(device, os.O_RDONLY | os.O_EXCL)
            if again:
                await machine.add_disk(disk)
        await machine.stop()


def with_device(bundle: Path, device: str, *, write: bool) -> Path:
    """The bundle, with a device in its specification."""
    path = bundle / "config.json"
    major, minor = map(int, device.split(":"))
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "rw" if write else "r"}
    node = {"path": "/dev/volume", "type": "b", "major": major, "minor": minor}
    linux = {"devices": [node], "resources": {"devices": [rule]}}
    path.write_text(json.dumps({"linux": linux}))
    return bundle


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", KINDS)
async def test_a_machine_is_saved_where_it_was_said_and_restored(bed: Bed, name: str, real: bool) -> None:
    if real and not REAL[name]:
        pytest.skip(f"no variable names a {KINDS[name]}")
    template = bed.root / "template"
    template.mkdir(mode=0o700)
    ground: Ground | None = None
    for places in ({"saved_to": template}, {"template": template}):
        broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
        await broker.take_user(BASE, COUNT)
        if ground is None:
            ground = Ground(name, bed, broker, real)
        ground.broker = broker
        machine = await ground.started(**places)
        assert machine.warnings == ()
        if "saved_to" in places:
            await machine.pause()
            if not await is_saved(machine, template):
                await machine.stop()
                await broker.close()
                pytest.skip("this host's KVM does not tell a virtual CPU's state")
            assert {path.stat().st_uid for path in template.iterdir()} == {0, broker.user}
        await machine.stop()
        assert await broker.close() == []


@pytest.mark.parametrize(("name", "path", "body"), [(name, *one) for name in KINDS for one in ATTACKS[name]])
async def test_who_owns_the_api_opens_nothing(
    bed: Bed, broker: Broker, name: str, path: str, body: Any
) -> None:
    """Also before the seal: the broker passes what is declared from when it holds the API."""
    ground = Ground(name, bed, broker)
    machine = await ground.started()
    pid = pid_of(machine)
    record = Path(f"/proc/{pid}/root{bed.directory}/vmm/record.jsonl").read_text()
    assert machine._client is not None
    method = "PATCH" if path.startswith("/drives") else "PUT"
    with pytest.raises(Exception, match=r"closed|reset"):
        await machine._client.request(method, path.removeprefix("/api/v1"), body)
    sentence = take_fatal_message(str(bed.bundle))
    assert "the shim sent to its VMM's monitor what it must not: " in sentence
    assert path in sentence
    assert "so the pod was ended" in sentence
    if Path(f"/proc/{pid}/root").exists():
        assert Path(f"/proc/{pid}/root{bed.directory}/vmm/record.jsonl").read_text() == record
    await machine.stop()


@pytest.mark.skipif(not FIRECRACKER, reason="KATA_TEST_FIRECRACKER names no program")
async def test_the_real_firecracker_has_nothing_of_the_host(bed: Bed, broker: Broker) -> None:
    file = os.open(build_bare(bed.root), os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        spec = UnikernelSpec("pod", bed.directory, 64, "/app", file, theirs.fileno(), "spin")
        values: dict[str, Any] = {"path": FIRECRACKER, "kernel": ""}
        monitor = FirecrackerUnikernel(Firecracker(**values), broker)
        await monitor.prepare(spec)
        await monitor.run()
        assert_nothing_of_the_host(pid_of(monitor), broker, bed.directory, {"null", "kvm"})
        await monitor.pause()
        await monitor.resume()
        client = monitor._machine._client
        assert client is not None
        with pytest.raises(Exception, match=r"closed|reset"):
            await client.request("PUT", "/logger", {"log_path": "/etc/cron.d/x"})
        assert "the request 'PUT /logger' is not allowed" in take_fatal_message(str(bed.bundle))
        await monitor.stop()
    os.close(file)


@pytest.mark.parametrize("name", KINDS)
async def test_the_real_program_has_what_it_needs(bed: Bed, broker: Broker, name: str) -> None:
    if not REAL[name]:
        pytest.skip(f"no variable names a {KINDS[name]}")
    kernel, image = bed.root / "kernel", bed.root / "image"
    # What the guest sees of VMX and SVM.
    code = say(b"nested: ") + say_cpuid(1, 5) + say_cpuid(0x80000001, 2) + say(b"\n") + SPIN
    kernel.write_bytes(tiny_kernel(code, pvh=True))
    for file in (image, bed.root / "cache" / f"{IMAGE}.erofs"):
        file.write_bytes(bytes(1 << 20))
    values: dict[str, Any] = {"path": REAL[name], "kernel": kernel, "image": image}
    table: Any = Firecracker(**values)
    if name == "clh":
        table = CloudHypervisor(shared_fs="none", **values)
    machine = registry.create(name, table, broker)
    template = bed.root / "template"
    template.mkdir()
    spec = VmSpec("pod", bed.directory, 2, 128, kernel, image=image, spare_disks=1, saved_to=template)
    await machine.prepare(spec)
    await machine.run()
    assert isinstance(machine, RestMachine)
    devices = {"null", "kvm", *(["urandom"] if name == "clh" else [])}
    assert_nothing_of_the_host(pid_of(machine), broker, bed.directory, devices, template)
    await machine.add_disk(Disk("rootfs_1", Path(image_cache.CACHE, f"{IMAGE}.erofs"), read_only=True))
    if name == "clh":  # it asks the guest, and this one does not hear
        broker.patience = 0.1
        with pytest.raises(HypervisorError, match="the guest does not let it go"):
            await machine.remove_disk("rootfs_1")
        broker.patience = PATIENCE
    else:
        await machine.remove_disk("rootfs_1")
    await machine.pause()
    if await is_saved(machine, template):
        assert sum(path.stat().st_size for path in template.iterdir()) > 64 << 20
    await machine.resume()
    await machine.verify_confinement()
    assert "nested: 00" in machine.console_tail
    await machine.stop()


async def test_the_real_cloud_hypervisor_grows_takes_a_device_and_stays_confined(
    bed: Bed, broker: Broker
) -> None:
    if not REAL["clh"]:
        pytest.skip("no variable names a cloud-hypervisor")
    kernel = bed.root / "kernel"
    kernel.write_bytes(tiny_kernel(say(b"hello\n") + SPIN, pvh=True))
    values: dict[str, Any] = {"path": REAL["clh"], "kernel": kernel, "shared_fs": "none"}
    machine = registry.create("clh", CloudHypervisor(**values), broker)
    assert isinstance(machine, RestMachine)
    most = MachineSize(3, 128 + 2 * MEMORY_STEP_MIB)
    await machine.prepare(VmSpec("pod", bed.directory, 1, 128, kernel, most=most))
    await machine.run()
    # Each thread is verified after each of these; there is one more for each virtual CPU.
    for size in (MachineSize(2, 128 + MEMORY_STEP_MIB), most):
        assert await machine.resize(size) == size
        assert len(vcpus_of(machine)) == size.vcpus
    with loop_device(bed.root / "file") as device:
        number = number_of(device)
        await broker.read_spec(str(with_device(bed.bundle, number, write=True)))
        await machine.add_disk(Disk("device_1", Path("/dev/block", number)))
        broker.patience = 0.1
        with pytest.raises(HypervisorError, match="the guest does not let it go"):
            await machine.remove_disk("device_1")
        broker.patience = PATIENCE
        with pytest.raises(OSError, match="busy"):
            os.open(device, os.O_RDONLY | os.O_EXCL)  # it is the machine's until that ends
        await machine.verify_confinement()
        await machine.stop()


def vcpus_of(machine: RestMachine) -> list[str]:
    threads = Path(f"/proc/{pid_of(machine)}/task").glob("*/comm")
    return [name for path in threads if (name := path.read_text().strip()).startswith("vcpu")]


@pytest.mark.skipif(not (FIRECRACKER and JAILER), reason="needs KATA_TEST_FIRECRACKER and KATA_TEST_JAILER")
async def test_the_real_jailer_makes_firecracker_the_pods_user(bed: Bed, broker: Broker) -> None:
    kernel = bed.root / "kernel"
    kernel.write_bytes(bytes(1024))
    values: dict[str, Any] = {"path": FIRECRACKER, "jailer_path": JAILER, "kernel": kernel}
    machine = registry.create("firecracker", Firecracker(**values), broker)
    assert isinstance(machine, RestMachine)
    await machine.prepare(VmSpec("pod", bed.directory, 1, 128, kernel))
    pid = pid_of(machine)
    status = status_of(pid)
    assert set(status["Uid"].split()) | set(status["Gid"].split()) == {str(broker.user)}
    assert {status[name] for name in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    root = Path(f"/proc/{pid}/root")
    assert "etc" not in {path.name for path in root.iterdir()}
    assert weaknesses("firecracker", pid, broker) == []
    assert machine._client is not None
    with pytest.raises(Exception, match=r"closed|reset"):
        await machine._client.request("PUT", "/logger", {"log_path": "/x"})
    assert "the request 'PUT /logger' is not allowed" in take_fatal_message(str(bed.bundle))
    await machine.stop()
