"""Each honoured key, set to another valid value, makes a difference in what reaches something.

The configuration is loaded from a file, as a shim loads it. What is observed is what leaves this program: the
arguments of processes, the requests to a VMM and to the guest's agent, what the broker is asked for, the
filter, the log's level, and what a pod's annotations may set. A key without a difference is not honoured.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tomli_w
from google.protobuf.empty_pb2 import Empty
from pydantic.fields import FieldInfo

from kata_agent.client import AgentClient
from kata_configuration import Configuration, ConfigurationError, load
from kata_configuration.models import HYPERVISORS, TABLES
from kata_configuration.models.base import Annotation, MachineTable, inner_table
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import registry, virtiofsd
from kata_hypervisor.cloud_hypervisor import machine as clh
from kata_hypervisor.contract import Capabilities, Disk, Tap, UnikernelSpec, VmSpec
from kata_hypervisor.dragonball import boot_source
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.dragonball.guest_devices import GuestDevices
from kata_hypervisor.errors import NotSupportedError
from kata_hypervisor.firecracker import machine as firecracker
from kata_hypervisor.firecracker.unikernel import FirecrackerUnikernel
from kata_hypervisor.qemu import command, plugging
from kata_hypervisor.qemu.unikernel import QemuUnikernel
from kata_hypervisor.rest_machine import RestMachine
from kata_hypervisor.solo5.tender import Hvt, Spt, Tender
from kata_runtime.container import guest_spec
from kata_runtime.errors import UnsupportedError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.logging import HYPERVISOR, RUNTIME
from kata_runtime.pod import giving_up, linux_boot, machine_spec, sealing
from kata_runtime.pod.agent_connection import connect_agent
from kata_runtime.pod.boot import Boot
from kata_runtime.pod.linux_guest import LinuxGuest
from kata_runtime.shim.debug_service import DebugService
from kata_runtime.unikernel.boot import UnikernelBoot
from pod_bed import fixed_room, no_cpus

Place = tuple[tuple[str, ...], str]
Observed = dict[str, object]
"""What was observed, by what was looked at."""

IDENTITY = SandboxIdentity("/run/kata", "default", "pod")
ANNOTATION = "io.katacontainers.config."

# Keys with one value, which states what is so.
STATEMENTS = {
    *((("hypervisor", "clh"), "block_device_driver"), (("hypervisor", "firecracker"), "block_device_driver")),
    *((("hypervisor", "dragonball"), "hugepage_type"), (("hypervisor", "firecracker"), "shared_fs")),
    *((("runtime",), key) for key in ("name", "agent_name", "sandbox_cgroup_only")),
}

# Another valid value, where a type does not say one. "@name" is a file of that name that exists.
OTHER: dict[str, object] = {
    "rootfs_type": "ext4",
    "kernel_params": "loglevel=7",
    "kernel_verity_params": (
        f"root_hash={'ab' * 32},salt=cd,data_blocks=1,data_block_size=4096,hash_block_size=4096"
    ),
    "machine_accelerators": "kernel_irqchip=split",
    "cpu_features": "pmu=off",
    "seccompsandbox": "on",
    "virtio_fs_extra_args": ["--thread-pool-size=2"],
    "virtio_fs_daemon": "@virtiofsd-rust",
    "entropy_source": "/dev/random",
    "sandbox_bind_mounts": ["/etc:rw"],
    "enable_annotations": ["default_memory"],
    "kernel_modules": ["dummy numdummies=2"],
    "hypervisor_name": "clh",
    "template_path": "/run/templates",
    "queue_size": 256,
    "firmware": "@other",
    "block_device_logical_sector_size": 4096,
    "block_device_physical_sector_size": 4096,
    "virtio_fs_queue_size": 512,
    "overhead_vcpus": 2.0,
    "default_maxvcpus": 1,
    "default_maxmemory": 1024,
    "initrd": "@other",
    "image": "@other",
    "jailer_path": "@other",
    "required_confinement": ["landlock"],
}

# What else must be said for a key to matter, and what may not be said.
BESIDE: dict[str, dict[str, object]] = {
    "disk_rate_limiter_bw_one_time_burst": {"disk_rate_limiter_bw_max_rate": 8000},
    "disk_rate_limiter_ops_one_time_burst": {"disk_rate_limiter_ops_max_rate": 1000},
    "template_path": {"enable_template": True},
    "default_maxvcpus": {"default_vcpus": 1},
    "default_maxmemory": {"static_sandbox_resource_mgmt": False},
    "enable_virtio_mem": {"static_sandbox_resource_mgmt": False},
    "disable_new_netns": {"internetworking_model": "none"},
    "indep_iothreads": {"enable_iothreads": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that a configuration may name."""
    directory = tmp_path_factory.mktemp("files")
    for name in ("program", "kernel", "initrd", "image", "other", "virtiofsd", "virtiofsd-rust"):
        content = b"--announce_submounts" if name == "virtiofsd" else b"--shared-dir"
        (directory / name).write_bytes(content + bytes(1024))
        (directory / name).chmod(0o755)
    return directory


def base(hypervisor: str, files: Path) -> dict[str, Any]:
    """A configuration that says little, with what a key of each table needs."""
    table: dict[str, Any] = {}
    fields = HYPERVISORS[hypervisor].model_fields
    given = {"path": "program", "kernel": "kernel", "virtio_fs_daemon": "virtiofsd", "image": "image"}
    table |= {key: str(files / name) for key, name in given.items() if key in fields}
    if "accelerator" in fields:
        table["accelerator"] = "kvm"
    second = HYPERVISORS["clh" if hypervisor != "clh" else "qemu"].example()
    second |= {"path": str(files / "program"), "kernel": str(files / "kernel"), "image": str(files / "image")}
    other = "clh" if hypervisor != "clh" else "qemu"
    return {
        "hypervisor": {hypervisor: table, other: second},
        "agent": {"kata": {}},
        "runtime": {"hypervisor_name": hypervisor},
    }


def table_at(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The table of a path; an inner one is made."""
    table: dict[str, Any] = functools.reduce(lambda above, name: above.setdefault(name, {}), path, document)
    return table


def fields_of(path: tuple[str, ...]) -> Mapping[str, FieldInfo]:
    """The declarations of a table, or of one within it."""
    if path in TABLES:
        return TABLES[path].model_fields
    inner = inner_table(fields_of(path[:-1])[path[-1]])
    assert inner is not None
    return inner.model_fields


def other_value(place: Place, files: Path) -> object:
    """A valid value that is not the default."""
    path, key = place
    field = fields_of(path)[key]
    if key in OTHER:
        value = OTHER[key]
        return str(files / value[1:]) if isinstance(value, str) and value.startswith("@") else value
    if key.startswith("valid_"):
        return [str(files / "*")]
    default = field.get_default()
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 2
    choices = [item for item in getattr(field.annotation, "__args__", ()) if isinstance(item, str)]
    if choices:
        return next(choice for choice in choices if choice != default)
    return str(files / "other")  # a path


# -- what is observed --------------------------------------------------------------------------------------


class SeenError(Exception):
    """Enough was seen."""


class RecordingBroker:
    """Notes what is asked of it, and does nothing."""

    later: frozenset[str] = frozenset()
    pid = 0
    patience = 9.0

    def __init__(self) -> None:
        self.asked: list[object] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def ask(*arguments: object, **more: object) -> None:
            self.asked.append((name, repr(arguments), repr(more)))

        return ask


def sizes() -> Iterator[dict[str, Any]]:
    """Specifications of containers: without limits, and with."""
    yield {"process": {}, "linux": {}}
    limits = {"cpu": {"quota": 150000, "period": 100000}, "memory": {"limit": 300 << 20}}
    yield {"process": {}, "linux": {"resources": limits}}


def specs_of(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> list[VmSpec]:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    return [machine_spec.machine_of(configuration, IDENTITY, spec, (), resizable=True) for spec in sizes()]


def of_qemu(table: QemuHypervisor, spec: VmSpec) -> Iterator[object]:
    devices = command.Devices(None, vhost_net=True)
    networked = dataclasses.replace(spec, taps=(Tap("tap0", "tap0_kata", "02:00:00:00:00:01", (9,)),))
    yield command.command_line(table, networked, devices)
    disk = Disk("device_1", Path("/dev/block/7:0"))
    yield plugging.content(table, disk, 0, 1), plugging.device(table, disk, 0)
    yield command.shown(table, networked, devices).to_json()
    monitor = QemuUnikernel(table, SimpleNamespace(patience=9.0))
    monitor._confine(SimpleNamespace(unconfined=True))  # type: ignore[arg-type]
    yield monitor._table.confined


def of_clh(table: CloudHypervisor, spec: VmSpec, files: Path) -> Iterator[object]:
    sockets = clh.Sockets(vsock=Path("/vsock"), filesystem=Path("/fs"))
    yield clh.command_line(table)
    yield clh.vm_config(table, spec, sockets)
    yield clh.disk_config(table, Disk("disk", files / "image", read_only=True))
    yield clh.net_config(table, Tap("net0", "tap0", "02:00:00:00:00:01"))


def of_firecracker(table: Firecracker, spec: VmSpec, files: Path) -> Iterator[object]:
    places = firecracker.Places(Path("/api"), Path("/vsock"), {path: path for path in files.iterdir()})
    yield firecracker.command_line(table, spec, places.api)
    yield list(firecracker.requests(table, spec, places))
    yield firecracker.interface(table, Tap("net0", "tap0", "02:00:00:00:00:01"))
    if table.jailer_path is not None:
        yield firecracker.jailer_command_line(table, spec, Path("/base"), 1, places.api)


async def of_firecracker_unikernel(table: Firecracker, monkeypatch: pytest.MonkeyPatch) -> bool | str:
    """Whether the Firecracker of an unconfined unikernel is confined, or why there is none."""
    monitor = FirecrackerUnikernel(table, cast("Any", SimpleNamespace(patience=9.0)))

    async def prepare(_: object) -> None:
        raise SeenError

    for check in ("check_unikernel", "check_bootable", "check_room"):
        monkeypatch.setattr(f"kata_hypervisor.firecracker.unikernel.{check}", lambda *_: None)
    monkeypatch.setattr(monitor._machine, "prepare", prepare)
    spec = UnikernelSpec("pod", Path("/"), 64, "/app", -1, -1, "", unconfined=True)
    try:
        await monitor.prepare(spec)
    except NotSupportedError as refusal:
        return str(refusal)
    except SeenError:
        pass
    return monitor._machine._table.confined


def memory_of_a_unikernel(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> int:
    """MiB for a unikernel whose container has no limit."""
    monkeypatch.setattr("kata_runtime.unikernel.boot.UnikernelStreams", lambda _: None)
    unikernel: Any = SimpleNamespace(check_runner=lambda _: None)
    container: Any = SimpleNamespace(spec={}, init=SimpleNamespace(paths=None))
    broker: Any = RecordingBroker()
    boot = UnikernelBoot(configuration, IDENTITY, broker, unikernel, container)
    return boot._memory()


class Children:
    """Notes the arguments of what is started."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []

    async def spawn(self, name: str, argv: list[str], fds: Mapping[int, int], **_: object) -> None:
        self.started.append(argv)


async def of_dragonball(
    table: DragonballTable, spec: VmSpec, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> list[object]:
    """What a machine in this process is made of; it is made as far as its board."""
    seen: list[object] = []

    class Source:
        warnings = ()

        def prepare(self, board: object) -> None:
            seen.append(repr(board))
            raise SeenError

    def choose(spec: VmSpec, line: str, *_: object) -> tuple[Source, None]:
        seen.append(line)
        return Source(), None

    monkeypatch.setattr(boot_source, "choose", choose)
    driver = Dragonball(table, SimpleNamespace(patience=9.0))
    devices, console = SimpleNamespace(present=[], spares=[]), SimpleNamespace(write=None)
    with contextlib.suppress(SeenError):
        driver._build(devices, console, SimpleNamespace(), spec)  # type: ignore[arg-type]
    seen.append(sorted(driver.seal_features))
    children: Any = Children()
    changes = {"directory": directory, "image": None}
    here = VmSpec(**{name: getattr(spec, name) for name in spec.__slots__} | changes)

    async def open_vsock(*_: object) -> object:
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(GuestDevices, "_open_vsock", open_vsock)
    with contextlib.ExitStack() as opened:
        found, host = GuestDevices(opened), cast("Any", SimpleNamespace(patience=9.0))
        await found.open(table, host, virtiofsd.FileServer(table, children, host), here)
        seen += [(type(one).__name__, getattr(one, "queue_sizes", ())) for one in found.present]
    seen.append(children.started)
    return seen


def of_tender(tender: Tender) -> Iterator[object]:
    yield tender._path
    yield tender._check_version((0, 10), unconfined=True)
    yield tender._confined
    yield tender._children._log is not None


def of_virtiofsd(table: Any, files: Path) -> list[str]:
    daemon = table.virtio_fs_daemon
    return virtiofsd.command_line(
        daemon, virtiofsd.dialect_of(daemon), files, table.virtio_fs_cache, table.virtio_fs_extra_args
    )


async def of_driver(
    configuration: Configuration, files: Path, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> Observed:
    """What reaches the machine."""
    table = configuration.hypervisor
    seen: Observed = {}
    if registry.info_of(configuration.hypervisor_name).unikernel:
        seen["memory of a unikernel"] = memory_of_a_unikernel(configuration, monkeypatch)
    if isinstance(table, Solo5Hvt):
        return seen | {"tender": list(of_tender(Hvt(table, SimpleNamespace(patience=9.0))))}
    if isinstance(table, Solo5Spt):
        return seen | {"tender": list(of_tender(Spt(table, SimpleNamespace(patience=9.0))))}
    assert isinstance(table, MachineTable)
    specs = specs_of(configuration, monkeypatch)
    seen["machine"] = [repr(spec) for spec in specs]
    if isinstance(table, QemuHypervisor):
        seen["qemu"] = list(of_qemu(table, specs[0]))
    elif isinstance(table, CloudHypervisor):
        seen["cloud-hypervisor"] = list(of_clh(table, specs[0], files))
    elif isinstance(table, Firecracker):
        seen["firecracker"] = list(of_firecracker(table, specs[0], files))
        seen["unikernel"] = await of_firecracker_unikernel(table, monkeypatch)
    else:
        assert isinstance(table, DragonballTable)
        seen["dragonball"] = await of_dragonball(table, specs[0], monkeypatch, directory)
    if table.shares_files:
        seen["virtiofsd"] = of_virtiofsd(table, files)
    driver = registry.create(configuration.hypervisor_name, table, SimpleNamespace(patience=9.0))
    if isinstance(driver, RestMachine):
        seen["driver's log"] = driver._children._log is not None
    return seen


async def of_agent(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> Observed:
    """What the guest's agent is asked, and how patiently."""
    seen: Observed = {}

    async def connect(_: object, **patience: float) -> None:
        seen["patience"] = patience

    monkeypatch.setattr(AgentClient, "connect", connect)
    never = asyncio.get_running_loop().create_future()
    machine = SimpleNamespace(transport=None, wait=lambda: never)
    await connect_agent(configuration, machine)  # type: ignore[arg-type]
    plain: Any = SimpleNamespace(capabilities=Capabilities())
    guest = LinuxGuest(configuration, plain, plain, streams=True, room=fixed_room(), cpus=no_cpus())
    seen["health check"] = guest._health_timeout
    linux = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}
    spec = {"root": {}, "process": {"args": ["true"]}, "linux": linux}
    seen["container"] = guest_spec.amend(spec, "one", {}, disable_guest_seccomp=guest._disable_seccomp)
    if isinstance(configuration.hypervisor, MachineTable):
        request = machine_spec.request_of(configuration, IDENTITY, {})
        seen["sandbox"] = request.SerializeToString()
    return seen


async def of_shim(path: Path, configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> Observed:
    """What the runtime's own process does."""
    seen: Observed = {}
    broker: Any = RecordingBroker()
    spec = {"linux": {"namespaces": [{"type": "network", "path": ""}]}}
    boot = Boot(IDENTITY, broker, spec, inherited=0)
    loggers = [logging.getLogger(name) for name in (RUNTIME, HYPERVISOR)]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
        await boot._load(str(path))
        seen["log"] = [logger.level for logger in loggers]
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    await boot._prepare_host(configuration)

    async def attach(_: object, model: str, **more: object) -> None:
        seen["network"] = (model, more)
        raise SeenError

    monkeypatch.setattr("kata_runtime.pod.linux_boot.network.attach", attach)
    if isinstance(configuration.hypervisor, MachineTable):
        pod = linux_boot.LinuxBoot(configuration, IDENTITY, broker, {})
        with contextlib.suppress(SeenError):
            await pod.prepare()
    seal = SimpleNamespace(in_force=False, description="")
    sandbox: Any = SimpleNamespace(booted=SimpleNamespace(configuration=configuration, seal=seal))
    with pytest.raises(UnsupportedError) as refusal:
        await DebugService(sandbox).provoke(Empty())
    seen["provoke"] = str(refusal.value)
    machine: Any = SimpleNamespace(seal_features=frozenset({"vcpu"}), seal_vcpus=lambda _: None)
    monkeypatch.setattr(giving_up, "give_up", lambda _: True)
    # This process is no shim: what other tests have left open in it is not in question.
    monkeypatch.setattr(sealing, "_check_descriptors", lambda **_: None)

    async def verify(**asked: object) -> list[str]:
        seen["confinement"] = asked
        return []

    broker.verify_confinement = verify

    async def announce(**announced: object) -> None:
        seen["seal"] = announced
        raise SeenError

    broker.announce_seal = announce
    with contextlib.suppress(SeenError):
        seen["unsealed"] = await sealing.seal(configuration, machine, broker, 0)
    return seen | {"broker": broker.asked}


def of_annotations(path: Path) -> Observed:
    """What pods' annotations may set, and what becomes of a refused one."""
    table = "hypervisor."
    text = path.read_text()
    files = path.parent / "files"
    wanted = {f"{table}default_memory": "1024"}
    files_of = ("path", "kernel", "initrd", "image", "firmware", "jailer_path", "virtio_fs_daemon")
    for key in (*files_of, "entropy_source"):
        wanted[f"{table}{key}"] = str(files / "other")
    seen: Observed = {"file": len(text) > 0}
    for name, value in wanted.items():
        try:
            found = load(path, check_host=False, annotations={ANNOTATION + name: value})
        except ConfigurationError as refusal:
            seen[name] = [diagnostic.message for diagnostic in refusal.diagnostics if diagnostic.code]
        else:
            seen[name] = (found.annotations, [item.message for item in found.warnings])
    return seen


async def observe(document: dict[str, Any], files: Path, directory: Path, *, annotations: bool) -> Observed:
    """Everything that a configuration leads to. annotations: only what it lets annotations do."""
    directory.mkdir()
    (directory / "files").symlink_to(files)
    path = directory / "configuration.toml"
    path.write_text(tomli_w.dumps(document))
    if annotations:
        return of_annotations(path)
    configuration = load(path, check_host=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen: Observed = {"hypervisor": configuration.hypervisor_name}
        seen |= await of_driver(configuration, files, monkeypatch, directory)
        seen |= await of_agent(configuration, monkeypatch)
        seen |= await of_shim(path, configuration, monkeypatch)
    written: Observed = json.loads(json.dumps(seen, default=repr))
    return written


# -- the keys ----------------------------------------------------------------------------------------------


def places() -> list[Place]:
    found: list[Place] = []
    for path, model in TABLES.items():
        for key, field in model.model_fields.items():
            inner = inner_table(field)
            found += [((*path, key), name) for name in inner.model_fields] if inner else [(path, key)]
    return found


NAMES = {place: f"{'.'.join(place[0])}.{place[1]}" for place in places()}


@pytest.mark.parametrize("place", [place for place in places() if place not in STATEMENTS], ids=NAMES.get)
async def test_another_value_makes_a_difference(place: Place, files: Path, tmp_path: Path) -> None:
    path, key = place
    hypervisor = path[1] if path[0] == "hypervisor" else "qemu"
    before = base(hypervisor, files)
    table = table_at(before, path)
    for name, given in BESIDE.get(key, {}).items():
        home = before.setdefault("runtime", {}) if name in TABLES[("runtime",)].model_fields else table
        home[name] = given
    about_annotations = key.startswith("valid_") or key in ("enable_annotations", "refused_annotations")
    if key.startswith("valid_"):
        before["hypervisor"][hypervisor]["enable_annotations"] = ["[a-z_]+", *limited(place)]
    after = json.loads(json.dumps(before))
    value = other_value(place, files)
    table_at(after, path)[key] = value
    first = await observe(before, files, tmp_path / "before", annotations=about_annotations)
    second = await observe(after, files, tmp_path / "after", annotations=about_annotations)
    different = [name for name in first | second if first.get(name) != second.get(name)]
    assert different, f"{NAMES[place]} = {value!r} changes nothing"


def limited(place: Place) -> list[str]:
    """The keys whose values a key of globs limits."""
    path, key = place
    fields = fields_of(path)
    return [name for name, field in fields.items() if Annotation.of(field).listed_in == key]


@pytest.mark.parametrize("place", sorted(STATEMENTS), ids=NAMES.get)
def test_a_statement_has_one_value(place: Place, files: Path, tmp_path: Path) -> None:
    path, key = place
    field = fields_of(path)[key]
    if key != "agent_name":
        assert len(typing.get_args(field.annotation)) == 1
        return
    document = base("qemu", files)
    document["runtime"][key] = "other"
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(tomli_w.dumps(document))
    with pytest.raises(ConfigurationError, match="other"):
        load(configuration, check_host=False)


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
async def test_the_same_configuration_is_observed_alike(hypervisor: str, files: Path, tmp_path: Path) -> None:
    """What these tests rest on: a key that nobody reads makes no difference."""
    document = base(hypervisor, files)
    first, second = [
        await observe(document, files, tmp_path / name, annotations=False) for name in ("one", "two")
    ]
    assert first == second
