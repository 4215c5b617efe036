"""What is asked of an agent, asked of a unikernel whose monitor is one in name only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata_agent.client import AgentClient
from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor import registry
from kata_hypervisor.contract import UnikernelSpec, VmExit
from kata_hypervisor.errors import UnikernelError
from kata_hypervisor.host import ExitStatus
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.stdio.pumps import StdioPaths
from kata_runtime.unikernel.description import Unikernel
from kata_runtime.unikernel.guest import UnikernelGuest, find_unikernel, refuse_unikernel
from unikernel_description import GOOD

ALL = StdioPaths("/in", "/out", "/err")
WAIT = agent_pb2.WaitProcessRequest()


class Monitor:
    """Takes orders; `end` ends it."""

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
        os.close(self.output)
        self._end.set_result(VmExit(reason, "monitor", status, diagnostics=diagnostics or {}))

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._end)


class Broker:
    """Has an image's files."""

    def __init__(self, root: Path) -> None:
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
    made = {"process": {"args": ["a", "b"]}, "root": {"path": "rootfs"}, **spec}
    one = Container("one", "/bundle", made, Process("one", "", paths, made["process"]))
    one.home = "/shared/one"
    return one


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    (tmp_path / "app.hvt").write_bytes(b"unikernel")
    (tmp_path / "disk").write_bytes(bytes(512))
    return Broker(tmp_path)


@pytest.fixture
async def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    one = Monitor()
    monkeypatch.setattr(registry, "create_for_unikernel", lambda name, table, host: one)
    return one


async def prepared(
    broker: Broker, one: Container | None = None, *, hypervisor: str = "dragonball", **keys: str
) -> UnikernelGuest:
    kind = "hvt" if hypervisor == "dragonball" else "qemu"
    guest = UnikernelGuest(Unikernel("annotation", "/app.hvt", kind, **keys), one or container())
    configuration: Any = SimpleNamespace(
        hypervisor_name=hypervisor, hypervisor=SimpleNamespace(default_memory=99)
    )
    identity: Any = SimpleNamespace(id="one", directory="/run/one")
    try:
        await guest.prepare(configuration, identity, broker)  # type: ignore[arg-type]
    except BaseException:
        await guest.aclose()
        raise
    return guest


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
    with pytest.raises(UnsupportedError, match="one is a unikernel, which has no terminal"):
        await find_unikernel(one, broker)  # type: ignore[arg-type]


async def test_what_the_monitor_is_given(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker, block="/disk")
    assert monitor.spec is not None
    assert (monitor.spec.name, monitor.spec.command_line, monitor.spec.memory_mib) == ("/app.hvt", "a b", 99)
    assert monitor.spec.block is not None
    assert [(name, write) for _, name, write in broker.opened] == [("/app.hvt", False), ("/disk", True)]
    await guest.aclose()


async def test_an_initrd_is_opened_and_the_environment_is_told(broker: Broker, monitor: Monitor) -> None:
    (broker.root / "initrd").write_bytes(b"content")
    one = container(process={"args": ["a", "b"], "env": ["A=b"]})
    guest = await prepared(broker, one, hypervisor="qemu", kind="unikraft", initrd="/initrd")
    assert monitor.spec is not None
    assert monitor.spec.initrd is not None
    assert monitor.spec.command_line == 'a env.vars=[ A=b ] vfs.fstab=[ "initrd0:/:extract:::" ] -- b'
    assert [(name, write) for _, name, write in broker.opened] == [("/app.hvt", False), ("/initrd", False)]
    await guest.aclose()


@pytest.mark.parametrize(("limit", "mib"), [(64 << 20, 64), (1, 1), (-1, 99), (None, 99)])
async def test_a_memory_limit_is_the_memory(
    broker: Broker, monitor: Monitor, limit: int | None, mib: int
) -> None:
    guest = await prepared(broker, container(linux={"resources": {"memory": {"limit": limit}}}))
    assert monitor.spec is not None
    assert monitor.spec.memory_mib == mib
    await guest.aclose()


async def test_a_file_that_is_not_there_is_named(broker: Broker, monitor: Monitor) -> None:
    (broker.root / "app.hvt").unlink()
    with pytest.raises(
        InvalidRequestError, match=r"names '/app\.hvt' as the unikernel's binary: .*No such file"
    ):
        await prepared(broker)


async def test_a_hypervisor_that_does_not_run_it(broker: Broker, monitor: Monitor) -> None:
    with pytest.raises(UnsupportedError, match="the configuration in force has"):
        await prepared(broker, hypervisor="firecracker")
    assert broker.opened == []


async def test_a_refused_file_leaves_nothing_open(broker: Broker, monitor: Monitor) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monitor.refusal = UnikernelError("no")
    with pytest.raises(UnikernelError):
        await prepared(broker)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_its_life(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker)
    agent = AgentClient(guest)
    streams = [(await guest.connect(1))[0] for _ in range(3)]
    await agent.create_container(agent_pb2.CreateContainerRequest(container_id="one"))
    assert monitor.orders == []
    await agent.start_container(agent_pb2.StartContainerRequest())
    await agent.pause_container(agent_pb2.PauseContainerRequest())
    await agent.resume_container(agent_pb2.ResumeContainerRequest())
    os.write(monitor.output, b"printed")
    monitor.end(ExitStatus(code=3), "the unikernel ended with status 3")
    assert (await agent.wait_process(WAIT)).status == 3
    assert [os.read(stream.fileno(), 100) for stream in streams] == [b"", b"printed", b""]
    assert os.read(streams[1].fileno(), 100) == b""
    await agent.remove_container(agent_pb2.RemoveContainerRequest())
    assert monitor.orders == ["run", "pause", "resume", "stop"]
    for stream in streams:
        stream.close()
    await agent.aclose()


@pytest.mark.parametrize(("paths", "index"), [(ALL, 2), (StdioPaths("", "/out"), 0)])
async def test_a_crash_is_told_on_the_output(
    broker: Broker, monitor: Monitor, paths: StdioPaths, index: int
) -> None:
    guest = await prepared(broker, container(paths))
    streams = [(await guest.connect(1))[0] for path in (paths.stdin, paths.stdout, paths.stderr) if path]
    monitor.end(ExitStatus(signal=6), "the unikernel crashed")
    assert (await AgentClient(guest).wait_process(WAIT)).status == 134
    assert os.read(streams[index].fileno(), 100) == b"kata: the unikernel crashed\n"
    for stream in streams:
        stream.close()
    await guest.aclose()


async def test_a_container_without_streams(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    monitor.end(ExitStatus(signal=6), "the unikernel crashed")
    assert (await AgentClient(guest).wait_process(WAIT)).status == 134
    await guest.aclose()


@pytest.mark.parametrize(("number", "status"), [(9, 137), (15, 143), (2, 130)])
async def test_a_signal_ends_it(broker: Broker, monitor: Monitor, number: int, status: int) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    agent = AgentClient(guest)
    await agent.signal_process(agent_pb2.SignalProcessRequest(signal=28))  # SIGWINCH
    assert monitor.orders == []
    await agent.signal_process(agent_pb2.SignalProcessRequest(signal=number))
    assert (await agent.wait_process(WAIT)).status == status
    await guest.aclose()


async def test_what_needs_an_agent_is_unimplemented(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    agent = AgentClient(guest)
    calls = {
        "run another process in it": agent.exec_process(agent_pb2.ExecProcessRequest()),
        "change its limits": agent.update_container(agent_pb2.UpdateContainerRequest()),
        "count what it uses": agent.stats_container(agent_pb2.StatsContainerRequest()),
        "set the size of its terminal": agent.tty_win_resize(agent_pb2.TtyWinResizeRequest()),
    }
    for words, call in calls.items():
        with pytest.raises(RpcError, match=f"cannot {words}: the container is a unikernel") as caught:
            await call
        assert caught.value.code is Code.UNIMPLEMENTED
    with pytest.raises(RpcError, match="cannot run another process in it"):
        await guest.connect(1)
    monitor.end(ExitStatus(code=0), "the end")
    await guest.aclose()


async def test_it_is_alone_in_its_sandbox(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker, container(StdioPaths()))
    with pytest.raises(RpcError, match="cannot run container two beside it") as caught:
        await AgentClient(guest).create_container(agent_pb2.CreateContainerRequest(container_id="two"))
    assert caught.value.code is Code.UNIMPLEMENTED
    monitor.end(ExitStatus(code=0), "the end")
    await guest.aclose()
    refuse_unikernel(container())
    with pytest.raises(UnsupportedError, match="a unikernel is the only container of its sandbox"):
        refuse_unikernel(container(annotations=GOOD))


async def test_a_monitor_that_complained_is_quoted(broker: Broker, monitor: Monitor) -> None:
    guest = await prepared(broker, container(StdioPaths("", "/out")))
    stream, _ = await guest.connect(1)
    diagnostics = {"solo5-hvt stderr": "no KVM"}
    status = ExitStatus(code=1)
    monitor.end(status, "solo5-hvt exited: exit status 1: no KVM", diagnostics)
    assert (await AgentClient(guest).wait_process(WAIT)).status == 1
    assert os.read(stream.fileno(), 100) == b"kata: solo5-hvt exited: exit status 1: no KVM\n"
    stream.close()
    await guest.aclose()
