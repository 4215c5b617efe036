"""The agent's smaller parts: boot options, ids, namespaces, crun's messages, devices, the method table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kata_agent.guest import boot, devices, log, metrics, signals, system
from kata_agent.guest.errors import (
    GuestError,
    InvalidRequestError,
    NotFoundError,
    StateError,
    UnsupportedError,
)
from kata_agent.guest.namespaces import SharedNamespaces
from kata_agent.guest.oom import OomWatcher
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.runtime import last_error
from kata_agent.guest.sandbox import check_id
from kata_agent.guest.service import AgentService
from kata_agent.protos import agent_pb2, health_pb2


def test_options_from_the_kernels_command_line() -> None:
    assert boot.parse_options("console=ttyS0 quiet") == boot.Options()
    options = boot.parse_options("agent.log=debug agent.container_pipe_size=2097152 agent.hotplug_timeout=3")
    assert options == boot.Options(verbose=True, pipe_size=2097152)
    assert boot.parse_options("quiet agent.host_ports=reserved") == boot.Options(reserved=True)
    assert not boot.parse_options("x=agent.host_ports=reserved agent.host_ports=").reserved
    with pytest.raises(InvalidRequestError, match="container_pipe_size=1M on the kernel"):
        boot.parse_options("agent.container_pipe_size=1M")


def test_serial_port_is_found_by_its_name(tmp_path: Path) -> None:
    assert boot.serial_port(str(tmp_path / "absent")) is None
    for name, text in (("vport1p1", "other\n"), ("vport2p1", "org.kata.agent.0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(text)
    assert boot.serial_port(str(tmp_path)) == "/dev/vport2p1"


def test_vsock_is_a_device_and_not_only_a_driver(tmp_path: Path) -> None:
    assert not boot.has_vsock(str(tmp_path / "absent"))
    (tmp_path / "module").mkdir()
    assert not boot.has_vsock(str(tmp_path))
    (tmp_path / "virtio2").mkdir()
    assert boot.has_vsock(str(tmp_path))


@pytest.mark.parametrize("text", ["a", "a1_.-b", "0" * 128])
def test_ids(text: str) -> None:
    assert check_id(text, "id") == text


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a b", "a\n", "é", "0" * 129])
def test_ids_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not valid"):
        check_id(text, "id")


def test_namespaces_of_a_spec() -> None:
    shared = SharedNamespaces()
    shared._paths = {"ipc": "/ns/ipc", "uts": "/ns/uts"}
    spec = {
        "linux": {"namespaces": [{"type": "ipc", "path": "/host"}, {"type": "mount"}, {"type": "network"}]}
    }
    shared.apply(spec, pid=shared.pid)
    assert spec["linux"]["namespaces"] == [
        {"type": "ipc", "path": "/ns/ipc"},
        {"type": "mount"},
        {"type": "network"},
        {"type": "pid"},
    ]
    shared._paths["pid"] = "/ns/pid"
    shared.apply(spec, pid=shared.pid)
    assert spec["linux"]["namespaces"][-1] == {"type": "pid", "path": "/ns/pid"}
    shared.apply(spec, pid="")
    assert spec["linux"]["namespaces"][-1] == {"type": "pid"}


def test_namespaces_in_the_words_of_clients_in_rust() -> None:
    shared = SharedNamespaces()
    spec = {"linux": {"namespaces": [{"type": "net"}, {"type": "mnt"}, {"type": "mount"}]}}
    shared.apply(spec, pid="")
    assert spec["linux"]["namespaces"] == [{"type": "network"}, {"type": "mount"}, {"type": "pid"}]


def test_metrics_are_prometheus_text() -> None:
    lines = [line for line in metrics.text().splitlines() if not line.startswith("# TYPE ")]
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert values['kata_guest_meminfo{item="MemTotal"}'] > values["kata_agent_total_rss"] > 0
    assert values["kata_agent_threads"] >= 1
    assert 'kata_guest_load{item="load15"}' in values


def test_memory_is_announced_where_the_kernel_wants_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="MemHotplugByProbe is not served by this agent: plugged"):
        system.probe_memory([1 << 30], str(tmp_path / "probe"))
    (tmp_path / "probe").touch()
    system.probe_memory([1 << 30], str(tmp_path / "probe"))
    assert (tmp_path / "probe").read_text() == "0x40000000"


@pytest.mark.parametrize(
    ("namespaces", "mask", "dropped"),
    [
        ("70 1", "SigCgt", False),
        ("70 1", "SigIgn", False),
        ("70 1", "SigBlk", False),
        ("70 1", "SigPnd", True),
        ("70 2", "SigPnd", False),
        ("1", "SigPnd", False),
    ],
)
def test_signals_that_the_kernel_drops(namespaces: str, mask: str, dropped: bool) -> None:
    masks = dict.fromkeys(("SigPnd", "SigBlk", "SigIgn", "SigCgt"), 0) | {mask: 1 << (signal.SIGTERM - 1)}
    status = f"Name:\ta: b\nNSpid:\t{namespaces.replace(' ', chr(9))}\n"
    status += "".join(f"{name}:\t{value:016x}\n" for name, value in masks.items())
    assert signals.drops(status, signal.SIGTERM) is dropped
    assert not signals.drops("", signal.SIGTERM)


def test_last_error_of_crun() -> None:
    log_text = (
        '{"msg":"first","level":"error"}\n{"msg":"why","level":"error"}\n{"msg":"note","level":"warning"}\n'
    )
    assert last_error(log_text) == "why"
    assert last_error("") is None
    assert last_error('{"msg":"note","level":"warning"}\n') is None
    assert last_error("segmentation fault\n") == "segmentation fault"


def test_block_device_by_pci_path(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no block device 02/03 appeared"):
        devices.block_device("02/03", timeout=0, pci_root=str(tmp_path))
    inner = tmp_path / "0000:00:02.0" / "0000:01:03.0" / "virtio4" / "block" / "absent"
    inner.mkdir(parents=True)
    assert devices._block_at(str(tmp_path), "02/03") is None  # no such node in /dev
    for source in (
        "../x",
        "/dev/../x",
        "/etc/passwd",
        "2",
        "02/",
        "",
        "/dev/disk/by-id/x",
        "/dev/disk/by-id/virtio-",
    ):
        with pytest.raises(InvalidRequestError):
            devices.block_device(source, timeout=0)


def test_block_device_by_serial_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_block", lambda path: True)
    for name, serial, size in (
        ("vda", "image", 9),
        ("vdb", "rootfs_1", 0),
        ("loop0", "", 9),
        ("vdd", "rootfs_2", 8),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        if serial:
            (tmp_path / name / "serial").write_text(f"{serial}\n")
    found = devices.block_device("/dev/disk/by-id/virtio-rootfs_2", timeout=0, block=str(tmp_path))
    assert found == "/dev/vdd"
    for absent in ("rootfs_1", "rootfs_3"):  # one without a size, as before its disk is there; and none
        with pytest.raises(NotFoundError, match=f"virtio-{absent} appeared"):
            devices.block_device(f"/dev/disk/by-id/virtio-{absent}", timeout=0, block=str(tmp_path))


def test_devices_that_cannot_be_applied() -> None:
    with pytest.raises(InvalidRequestError, match="type 'vfio' is not known"):
        devices.apply([agent_pb2.Device(id="d", type="vfio")], {}, Reaper())


def test_devices_get_their_numbers_here_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of one device here may be the number of another on the host."""
    here = {"/dev/vdb": os.makedev(7, 1), "/dev/vdc": os.makedev(254, 32)}
    monkeypatch.setattr(devices, "block_device", lambda source: source)
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_rdev=here[path]))
    nodes = [
        {"path": path, "type": "b", "major": 7, "minor": minor}
        for path, minor in (("/dev/x", 0), ("/dev/y", 1))
    ]
    rules = [{"allow": True, "type": "b", "major": 7, "minor": minor, "access": "r"} for minor in (0, 1)]
    spec = {"linux": {"devices": nodes, "resources": {"devices": [{"allow": False}, *rules]}}}
    given = [("/dev/x", "/dev/vdb"), ("/dev/y", "/dev/vdc")]
    asked = [agent_pb2.Device(type="blk", vm_path=found, container_path=path) for path, found in given]
    devices.apply(asked, spec, Reaper())
    numbers = [(7, 1), (254, 32)]
    assert [(node["major"], node["minor"]) for node in nodes] == numbers
    assert [(rule["major"], rule["minor"]) for rule in rules] == numbers
    with pytest.raises(InvalidRequestError, match="the spec has no device '/dev/x'"):
        devices.apply(
            [agent_pb2.Device(id="d", type="blk", container_path="/dev/x")], {"linux": {}}, Reaper()
        )


@pytest.mark.parametrize(
    ("kind", "number", "error", "said"),
    [
        ("b", (254, 0), InvalidRequestError, "block device 254:0 is one of the host's, and was not plugged"),
        ("c", (511, 7), NotFoundError, "the guest's kernel has no character device 511:7"),
    ],
)
def test_a_node_without_a_device_of_this_guest_is_not_made(
    kind: str, number: tuple[int, int], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_MODPROBE", ())
    monkeypatch.setattr(system, "_BUSYBOX", ())
    node = {"path": "/dev/x", "type": kind, "major": number[0], "minor": number[1]}
    with pytest.raises(error, match=said):
        devices.apply([], {"linux": {"devices": [node]}}, Reaper())


def test_a_character_device_that_is_there_needs_nothing() -> None:
    nodes = [{"path": "/n", "type": "c", "major": 1, "minor": 3}, {"path": "/p", "type": "p"}]
    devices.apply([], {"linux": {"devices": nodes}}, Reaper())


def test_processors_and_memory_are_switched_on(tmp_path: Path) -> None:
    for name in ("cpu/cpu1", "cpu/cpu2", "cpu/cpu0", "cpu/cpuidle", "memory/memory7"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("cpu/cpu1", "cpu/cpu2", "memory/memory7"):
        (tmp_path / name / "online").write_text("0\n")
    system.bring_online(1, wait=False, memory=False, sysfs=str(tmp_path))
    assert (tmp_path / "cpu/cpu1/online").read_text().strip() == "1"
    assert (tmp_path / "cpu/cpu2/online").read_text().strip() == "0"
    system.bring_online(0, wait=False, memory=True, sysfs=str(tmp_path))
    assert (tmp_path / "cpu/cpu2/online").read_text().strip() == "1"
    assert (tmp_path / "memory/memory7/online").read_text().strip() == "1"


def test_name_servers(tmp_path: Path) -> None:
    target = tmp_path / "resolv.conf"
    system.set_name_servers([], str(target))
    assert not target.exists()
    system.set_name_servers(["nameserver 10.0.0.1", "search a"], str(target))
    assert target.read_text() == "nameserver 10.0.0.1\nsearch a\n"


class Waiting(Reaper):
    """A reaper that waits for what it runs itself, as no thread of this process collects."""

    def run(self, command: list[str], stdio: tuple[int, int, int], timeout: float | None = None) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        pid = os.posix_spawn(command[0], command, {}, file_actions=actions)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_kernel_module_that_is_not_there_fails_with_what_modprobe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modprobe = tmp_path / "modprobe"
    modprobe.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n[ "$1" = dummy ] && exit 0\n'
        'echo "modprobe: module $1 not found" >&2\nexit 1\n'
    )
    modprobe.chmod(0o755)
    monkeypatch.setattr(system, "_MODPROBE", (str(modprobe),))
    with pytest.raises(
        GuestError, match=r"^load kernel module nonsense: modprobe: module nonsense not found$"
    ):
        system.load_module("nonsense", [], Waiting())
    system.load_module("dummy", ["numdummies=2"], Waiting())
    assert (tmp_path / "asked").read_text() == "dummy numdummies=2\n"
    for name in ("", "-r", "../dummy", "a b", "dummy\n"):
        with pytest.raises(InvalidRequestError, match="is not the name of a kernel module"):
            system.load_module(name, [], Waiting())
    monkeypatch.setattr(system, "_MODPROBE", ())
    monkeypatch.setattr(system, "_BUSYBOX", ())
    with pytest.raises(GuestError, match="the guest image has no modprobe"):
        system.load_module("nonsense", [], Waiting())


def test_tables_that_no_socket_option_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there where a container may change its network; nothing is loaded for others."""
    asked = tmp_path / "asked"
    modprobe = tmp_path / "modprobe"
    modprobe.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexit 1\n')
    modprobe.chmod(0o755)
    monkeypatch.setattr(system, "_MODPROBE", (str(modprobe),))
    monkeypatch.setattr(system, "_TABLES", ("no_such_table", "no_other"))

    def load(*bounding: str) -> None:
        system.load_socket_option_tables({"process": {"capabilities": {"bounding": bounding}}}, Waiting())

    load("CAP_NET_RAW")
    system.load_socket_option_tables({"process": {}}, Waiting())
    assert not asked.exists()
    load("CAP_NET_RAW", "CAP_NET_ADMIN")  # a kernel without them is no error
    assert asked.read_text() == "-a no_such_table no_other\n"


def test_out_of_memory_events(tmp_path: Path) -> None:
    """Files of a disk never signal, so the look on removal has to find the kill."""
    watcher = OomWatcher()
    watcher._epoll = _NoEpoll()  # type: ignore[assignment]
    events = tmp_path / "memory.events"
    events.write_text("oom 0\noom_kill 1\n")
    watcher.add("one", str(tmp_path))
    watcher.add("none", str(tmp_path / "absent"))
    events.write_text("oom 0\noom_kill 2\n")
    watcher.remove("one")
    assert watcher.next() == "one"


def test_later_caller_takes_the_out_of_memory_events_over() -> None:
    import threading

    watcher = OomWatcher()
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(watcher.next())
        except StateError as error:
            outcome.append(error.code)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    threads[0].start()
    while watcher._asked < 1:
        threading.Event().wait(0.001)
    threads[1].start()
    threads[0].join(10)
    with watcher._changed:
        watcher._events.append("cid")
        watcher._changed.notify_all()
    threads[1].join(10)
    assert outcome == [StateError("").code, "cid"]


class _NoEpoll:
    def register(self, *_: int) -> None: ...
    def unregister(self, *_: int) -> None: ...


def test_log_lines_stay_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("two\nlines\x1b[31m" + "x" * 2000)
    log.debug("quiet")
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("kata-agent: two\\nlines\\x1b[31mxxx")
    assert len(text) < 1100


def test_every_method_of_the_protocol_is_answered() -> None:
    handlers = AgentService(_Anything()).handlers()  # type: ignore[arg-type]
    for module, service in ((agent_pb2, "AgentService"), (health_pb2, "Health")):
        descriptor = module.DESCRIPTOR.services_by_name[service]
        for method in descriptor.methods:
            handler = handlers[descriptor.full_name, method.name]
            assert handler.request.DESCRIPTOR.full_name == method.input_type.full_name
    assert len(handlers) == 44


class _Anything:
    def __getattr__(self, name: str) -> object:
        return lambda *_: None


def test_messages_load_without_protobufs_python_half() -> None:
    """In a fresh interpreter: the messages work, and what they stood in for is there when asked for."""
    script = """
import sys
from kata_agent.guest import protobuf
protobuf.load()
from kata_agent.protos import agent_pb2, health_pb2, types_pb2
light = [name for name in sys.modules if name.startswith("google.protobuf")]
assert "google.protobuf.descriptor_pool" not in light, light
assert "google.protobuf.text_format" not in light, light
request = agent_pb2.CreateContainerRequest(container_id="x", stdin_port=7)
request.OCI.Process.Args.extend(["a", "b"])
request.OCI.Annotations["k"] = "v"
same = agent_pb2.CreateContainerRequest.FromString(request.SerializeToString())
assert same == request and list(same.OCI.Process.Args) == ["a", "b"] and same.OCI.Annotations["k"] == "v"
assert health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).status == 1
assert types_pb2.v6 == 1 and types_pb2.IPFamily.Name(1) == "v6"
assert 'container_id: "x"' in repr(request)
from google.protobuf import json_format
assert json_format.MessageToDict(request)["containerId"] == "x"
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
