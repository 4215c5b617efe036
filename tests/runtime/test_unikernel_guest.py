"""What is asked of a guest, asked of a unikernel whose VMM is one in name only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from kata_hypervisor import registry
from kata_hypervisor.contract import Disk, UnikernelCapabilities, UnikernelSpec, VmExit
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.host import ExitStatus
from kata_runtime.broker import client
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.network.model import Link
from kata_runtime.stdio.files import STREAMS, StdioFiles, StdioPaths
from kata_runtime.stdio.pumps import Stream
from kata_runtime.unikernel.boot import UnikernelBoot
from kata_runtime.unikernel.description import Unikernel
from kata_runtime.unikernel.finding import find_unikernel, refuse_unikernel
from kata_runtime.unikernel.guest import UnikernelGuest
from network_program import ETH0, NetworkProgram
from unikernel_description import GOOD

ALL = StdioPaths("/in", "/out", "/err")

T = TypeVar("T")


class MachineDouble:
    """Takes orders; `end` ends it."""

    capabilities = UnikernelCapabilities(tap_descriptors=True, tap_header=False)

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.spec: UnikernelSpec | None = None
        self.refusal: Exception | None = None
        self.output = -1
        self._end: asyncio.Future[VmExit] = asyncio.get_running_loop().create_future()

    async def prepare(self, spec: UnikernelSpec) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.spec = spec
        self.output = os.dup(spec.output)

    def __getattr__(self, name: str) -> Callable[[], Any]:
        async def order() -> None:
            self.orders.append(name)
            if name == "stop" and not self._end.done():
                self.end(ExitStatus(signal=9), "it was stopped")

        return order

    def end(self, status: ExitStatus, reason: str, diagnostics: Mapping[str, str] | None = None) -> None:
        if self.output >= 0:
            os.close(self.output)
        self._end.set_result(VmExit(reason, "vmm", status, diagnostics=diagnostics or {}))

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._end)


class Broker(NetworkProgram):
    """Has an image's files, and a network of these links."""

    def __init__(self, root: Path, *links: Link) -> None:
        super().__init__(*links)
        self.root = root
        self.opened: list[tuple[str, str, bool]] = []

    async def open_in_image(self, root: str, name: str, *, write: bool) -> int:
        self.opened.append((root, name, write))
        try:
            return os.open(self.root / name.lstrip("/"), os.O_RDWR if write else os.O_RDONLY)
        except OSError as error:
            raise RequestFailedError(
                f"cannot open {name} in the image: {error.strerror}", error.errno or 0
            ) from None


def container(paths: StdioPaths = ALL, **spec: object) -> Container:
    made: dict[str, Any] = {"process": {"args": ["a", "b"]}, "root": {"path": "rootfs"}, **spec}
    made["linux"] = {**made.get("linux", {}), "namespaces": [{"type": "network"}]}
    one = Container("one", "/bundle", made, Process("one", "", paths, made["process"]))
    one.home = "/shared/one"
    return one


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    (tmp_path / "app.hvt").write_bytes(b"unikernel")
    (tmp_path / "disk").write_bytes(bytes(512))
    return Broker(tmp_path)


@pytest.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> MachineDouble:
    one = MachineDouble()
    monkeypatch.setattr(registry, "create_for_unikernel", lambda name, table, host: one)
    return one


async def prepared(
    broker: Broker,
    one: Container | None = None,
    *,
    hypervisor: str = "dragonball",
    pinning: bool = False,
    **keys: Any,
) -> UnikernelGuest:
    kind = "hvt" if hypervisor == "dragonball" else "qemu"
    configuration: Any = SimpleNamespace(
        hypervisor_name=hypervisor,
        hypervisor=SimpleNamespace(default_memory=99),
        runtime=SimpleNamespace(
            internetworking_model="tcfilter",
            spoof_protection=True,
            dan_conf=None,
            enable_vcpus_pinning=pinning,
        ),
    )
    identity: Any = SimpleNamespace(id="one", directory="/run/one")
    unikernel, files = Unikernel("annotation", "/app.hvt", kind, **keys), cast(client.Broker, broker)
    boot = UnikernelBoot(configuration, identity, files, unikernel, one or container())
    try:
        await boot.prepare()
    except BaseException:
        await boot.stop()
        raise
    return await boot.start(run_stage)


async def run_stage(name: str, work: Awaitable[T]) -> T:
    raise AssertionError("it waits for nothing")


async def test_its_virtual_cpu_is_kept_on_no_cpu_of_the_host(broker: Broker, machine: MachineDouble) -> None:
    with pytest.raises(UnsupportedError) as error:
        await prepared(broker, pinning=True)
    assert str(error.value) == (
        "cannot run the unikernel /app.hvt: enable_vcpus_pinning is set, and the virtual CPU of a unikernel "
        "is not kept on a CPU of the host; use a configuration without that key"
    )


async def streams_of(guest: UnikernelGuest, one: Container | None = None) -> dict[str, Stream]:
    """Create its container; what it is asked for reads and writes these."""
    stdio = await guest.create_container(one or container(), {}, StdioFiles())
    return stdio._streams


def process(exec_id: str = "") -> Process:
    return Process("one", exec_id, StdioPaths(), {})


async def test_annotations_come_before_the_file(broker: Broker) -> None:
    (broker.root / "urunc.json").write_text("{}")
    found = await find_unikernel(container(annotations=GOOD), broker)  # type: ignore[arg-type]
    assert found is not None
    assert found.origin == "annotation"
    with pytest.raises(InvalidRequestError, match=r"urunc\.json com\.urunc\.unikernel\.binary is missing"):
        await find_unikernel(container(), broker)  # type: ignore[arg-type]


async def test_a_container_without_either_is_none(broker: Broker) -> None:
    assert await find_unikernel(container(), broker) is None  # type: ignore[arg-type]
    assert broker.opened == [("/shared/one/rootfs", "/urunc.json", False)]


async def test_a_terminal_is_refused(broker: Broker) -> None:
    one = container(StdioPaths("/in", "/out", terminal=True), annotations=GOOD)
    with pytest.raises(UnsupportedError, match="cannot create container one with a terminal: it is a"):
        await find_unikernel(one, broker)  # type: ignore[arg-type]


async def test_what_the_vmm_is_given(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, block="/disk")
    assert machine.spec is not None
    assert (machine.spec.name, machine.spec.command_line, machine.spec.memory_mib) == ("/app.hvt", "a b", 99)
    assert machine.spec.block is not None
    assert [(name, write) for _, name, write in broker.opened] == [("/app.hvt", False), ("/disk", True)]
    await guest.stop()


@pytest.mark.parametrize("way", ["tap_descriptors", "tap_names"])
async def test_its_network_is_attached_and_its_address_told(
    broker: Broker, machine: MachineDouble, way: str
) -> None:
    broker.links = (ETH0,)
    names = way == "tap_names"
    machine.capabilities = UnikernelCapabilities(**{way: True}, tap_header=names)
    before = len(os.listdir("/proc/self/fd"))
    guest = await prepared(broker, kind="mirage")
    broker.close()
    assert machine.spec is not None
    assert machine.spec.command_line == "--ipv4=10.9.0.2/24 a b"
    net = machine.spec.net
    assert net is not None
    assert (net.mac.hex(":"), net.mtu, net.name) == (ETH0.mac, ETH0.mtu, "tap0_kata")
    assert (net.descriptor < 0) is names
    assert (broker.asked["named"], broker.asked["header"], broker.asked["forward"]) == (names, names, False)
    await guest.stop()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_network_that_it_cannot_have_is_refused(broker: Broker, machine: MachineDouble) -> None:
    broker.links = (ETH0, replace(ETH0, index=3, name="net1", mac="02:00:00:00:00:03"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnsupportedError, match="cannot attach net1: a unikernel has one interface"):
        await prepared(broker, kind="mirage")
    broker.close()
    assert machine.spec is None
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_initrd_is_opened_and_the_environment_is_given(
    broker: Broker, machine: MachineDouble
) -> None:
    (broker.root / "initrd").write_bytes(b"content")
    one = container(process={"args": ["a", "b"], "env": ["A=b"]})
    guest = await prepared(broker, one, hypervisor="qemu", kind="unikraft", initrd="/initrd")
    assert machine.spec is not None
    assert machine.spec.initrd is not None
    assert machine.spec.command_line == 'a env.vars=[ A=b ] vfs.fstab=[ "initrd0:/:extract:::" ] -- b'
    assert [(name, write) for _, name, write in broker.opened] == [("/app.hvt", False), ("/initrd", False)]
    await guest.stop()


@pytest.mark.parametrize(("limit", "mib"), [(64 << 20, 64), (1, 1), (-1, 99), (None, 99)])
async def test_a_memory_limit_is_the_memory(
    broker: Broker, machine: MachineDouble, limit: int | None, mib: int
) -> None:
    guest = await prepared(broker, container(linux={"resources": {"memory": {"limit": limit}}}))
    assert machine.spec is not None
    assert machine.spec.memory_mib == mib
    await guest.stop()


async def test_a_file_that_is_not_there_is_named(broker: Broker, machine: MachineDouble) -> None:
    (broker.root / "app.hvt").unlink()
    with pytest.raises(
        InvalidRequestError, match=r"names '/app\.hvt' as the unikernel's binary: .*No such file"
    ):
        await prepared(broker)


async def test_a_hypervisor_that_does_not_run_it(broker: Broker, machine: MachineDouble) -> None:
    with pytest.raises(UnsupportedError, match="the configuration in force has"):
        await prepared(broker, hypervisor="firecracker")
    assert broker.opened == []


async def test_a_refused_file_leaves_nothing_open(broker: Broker, machine: MachineDouble) -> None:
    before = len(os.listdir("/proc/self/fd"))
    machine.refusal = UnikernelError("no")
    with pytest.raises(UnikernelError):
        await prepared(broker)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_its_life(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker)
    streams = await streams_of(guest)
    assert machine.orders == []
    await guest.start_container("one")
    await guest.pause_container("one")
    await guest.resume_container("one")
    os.write(machine.output, b"printed")
    machine.end(ExitStatus(code=3), "the unikernel ended with status 3")
    assert await guest.wait_process(process()) == 3
    assert [os.read(streams[name].fileno(), 100) for name in STREAMS] == [b"", b"printed", b""]
    assert os.read(streams["stdout"].fileno(), 100) == b""
    await guest.remove_container("one")
    assert machine.orders == ["run", "pause", "resume", "stop"]
    for stream in streams.values():
        stream.close()
    await guest.stop()


@pytest.mark.parametrize(("paths", "name"), [(ALL, "stderr"), (StdioPaths("", "/out"), "stdout")])
async def test_a_crash_is_explained_on_the_output(
    broker: Broker, machine: MachineDouble, paths: StdioPaths, name: str
) -> None:
    guest = await prepared(broker, container(paths))
    streams = await streams_of(guest)
    machine.end(ExitStatus(signal=6), "the unikernel crashed")
    assert await guest.wait_process(process()) == 134
    assert os.read(streams[name].fileno(), 100) == b"kata: the unikernel crashed\n"
    for stream in streams.values():
        stream.close()
    await guest.stop()


async def test_a_container_without_streams(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    assert await streams_of(guest) == {}
    machine.end(ExitStatus(signal=6), "the unikernel crashed")
    assert await guest.wait_process(process()) == 134
    await guest.stop()


@pytest.mark.parametrize(("number", "status"), [(9, 137), (15, 143), (2, 130)])
async def test_a_signal_ends_it(broker: Broker, machine: MachineDouble, number: int, status: int) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    await guest.signal_process(process(), 28, everyone=False)  # SIGWINCH
    assert machine.orders == []
    await guest.signal_process(process(), number, everyone=False)
    assert await guest.wait_process(process()) == status
    await guest.stop()


async def test_what_needs_an_agent_is_unsupported(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    calls = {
        "run another process in it": guest.exec_process(process("job"), StdioFiles()),
        "change its limits": guest.update_container(container(), {}),
        "count what it uses": guest.container_stats("one"),
        "set the size of its terminal": guest.resize_terminal(process(), 80, 25),
        "plug in a disk": guest.add_disk(Disk("rootfs_1", Path("/image"))),
        "take out a disk": guest.remove_disk("rootfs_1"),
    }
    for action, call in calls.items():
        with pytest.raises(UnsupportedError, match=f"cannot {action}: the container is a unikernel"):
            await call
    machine.end(ExitStatus(code=0), "the end")
    await guest.stop()


async def test_an_exec_that_is_refused_leaves_no_stream_open(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    reader, writer = os.pipe()
    with pytest.raises(UnsupportedError):
        await guest.exec_process(process("job"), StdioFiles(stdout=writer))
    assert os.read(reader, 1) == b""
    os.close(reader)
    machine.end(ExitStatus(code=0), "the end")
    await guest.stop()


async def test_it_is_alone_in_its_sandbox(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    with pytest.raises(UnsupportedError, match="cannot run container one beside it: the container is a unik"):
        guest.check_further(container())
    machine.end(ExitStatus(code=0), "the end")
    await guest.stop()
    refuse_unikernel(container())
    with pytest.raises(UnsupportedError, match="a unikernel is the only container of its sandbox"):
        refuse_unikernel(container(annotations=GOOD))


async def test_a_vmm_that_complained_is_quoted(broker: Broker, machine: MachineDouble) -> None:
    guest = await prepared(broker, container(StdioPaths("", "/out")))
    streams = await streams_of(guest)
    diagnostics = {"solo5-hvt stderr": "no KVM"}
    status = ExitStatus(code=1)
    machine.end(status, "solo5-hvt exited: exit status 1: no KVM", diagnostics)
    assert await guest.wait_process(process()) == 1
    stream = streams["stdout"]
    assert os.read(stream.fileno(), 100) == b"kata: solo5-hvt exited: exit status 1: no KVM\n"
    stream.close()
    await guest.stop()
