"""Machines of Cloud Hypervisor and Firecracker that are saved, go on elsewhere, and get disks later."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_hypervisor import host_checks
from kata_hypervisor.contract import Disk, Tap, VmSpec
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    HypervisorError,
    LaunchError,
    NotSupportedError,
    SnapshotError,
)
from kata_hypervisor.rest_machine import RestMachine
from kata_runtime.broker.api_filter import RequestFilter
from rest_rig import KINDS, RestRig

NAMES = tuple(KINDS)
RESTORE = {"clh": "/api/v1/vm.restore", "firecracker": "/snapshot/load"}
SAVE = {"clh": "/api/v1/vm.snapshot", "firecracker": "/snapshot/create"}

Make = Callable[..., RestRig]


@pytest.fixture
async def make(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes rigs, each for a machine in a directory of its own; nothing of them is left at the end."""
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    before = len(os.listdir("/proc/self/fd"))
    rigs: list[RestRig] = []

    def make(name: str, mode: str = "") -> RestRig:
        rigs.append(RestRig(tmp_path_factory.mktemp("m"), name, mode))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.assert_nothing_left()
        await rig.host.aclose()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template"
    path.mkdir()
    return path


def like(rig: RestRig, saved: RestRig, **changes: Any) -> VmSpec:
    """The machine that was saved, in another rig: the same guest, another directory."""
    guest = saved.spec
    spec = replace(rig.spec, kernel=guest.kernel, initrd=guest.initrd, image=guest.image)
    return replace(spec, **changes)


async def save(rig: RestRig, template: Path, **changes: Any) -> None:
    """Have a machine saved, and ended."""
    machine = rig.machine()
    await machine.prepare(replace(rig.spec, saved_to=template, **changes))
    await machine.run()
    await machine.pause()
    await machine.snapshot(template)
    await machine.stop()


async def run(rig: RestRig, spec: VmSpec, **settings: object) -> RestMachine:
    machine = rig.machine(**settings)
    await machine.prepare(spec)
    await machine.run()
    return machine


async def refused(rig: RestRig, spec: VmSpec, error: type[HypervisorError] = SnapshotError) -> str:
    machine = rig.machine()
    with pytest.raises(error) as caught:
        await machine.prepare(spec)
    rig.assert_nothing_left()
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
async def test_a_machine_goes_on_from_a_saved_one(make: Make, name: str, template: Path) -> None:
    saved, rig = make(name), make(name)
    await save(saved, template)
    content = {path.name: path.read_bytes() for path in template.iterdir()}
    machine = rig.machine()
    await machine.prepare(like(rig, saved, template=template))
    assert machine.console_tail == ""
    asked = [path for _, path in rig.program.requests]
    assert asked[1:] == ([RESTORE[name], "/"] if name == "firecracker" else [RESTORE[name]])
    await machine.run()
    guest, _ = await machine.transport.connect(1024)
    guest.close()
    await machine.verify_confinement()
    assert not any("booted" in warning for warning in machine.warnings)
    await machine.stop()
    assert {path.name: path.read_bytes() for path in template.iterdir()} == content


@pytest.mark.parametrize("name", NAMES)
async def test_its_disks_are_its_own(make: Make, name: str, template: Path, tmp_path: Path) -> None:
    saved, rig = make(name), make(name)
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(bytes(512))
    await save(saved, template, disks=(Disk("rootfs", first, read_only=True),))
    disks = (Disk("rootfs", second, read_only=True),)
    machine = await run(rig, like(rig, saved, template=template, disks=disks))
    await machine.stop()
    if name == "firecracker":
        filled = next(entry for entry in rig.program.record if entry.get("path") == "/drives/rootfs")
        assert filled["method"] == "PATCH"
        assert filled["body"] == {"drive_id": "rootfs", "path_on_host": str(second)}


async def test_what_cloud_hypervisor_restores_has_the_new_machines_paths(make: Make, template: Path) -> None:
    saved, rig = make("clh"), make("clh")
    await save(saved, template)
    machine = rig.machine()
    await machine.prepare(like(rig, saved, template=template))
    restored = next(entry for entry in rig.program.record if entry.get("path") == RESTORE["clh"])
    assert restored["body"] == {"source_url": f"file://{rig.directory}/restored"}
    description = next(entry["restored"] for entry in rig.program.record if "restored" in entry)
    assert description["vsock"]["socket"] == str(rig.directory / "vmm/clh.vsock")
    assert description["fs"][0]["socket"] == str(rig.directory / "vmm/clh-fs.sock")
    assert description["disks"] == [{**description["disks"][0], "path": str(saved.directory / "image")}]
    await machine.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_another_machine_is_booted_with_a_warning(make: Make, name: str, template: Path) -> None:
    saved, rig = make(name), make(name)
    await save(saved, template)
    machine = await run(rig, like(rig, saved, template=template, memory_mib=256))
    assert any(f"is booted, and does not start from {template}" in line for line in machine.warnings)
    assert RESTORE[name] not in [path for _, path in rig.program.requests]
    await machine.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_a_state_of_another_kernel_or_version_is_refused(make: Make, name: str, template: Path) -> None:
    saved = make(name)
    await save(saved, template)
    newer = make(name, "version:99.1")
    message = await refused(newer, like(newer, saved, template=template))
    assert f"cannot start from {template}: it was saved with the VMM {KINDS[name]} " in message
    assert message.endswith(f"and this is {KINDS[name]} 99.1; save a new one")
    os.utime(saved.spec.kernel, (1, 1))
    rig = make(name)
    assert "it was saved with the guest's kernel" in await refused(rig, like(rig, saved, template=template))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "machine.json: No such file or directory"),
        (b"{", "its machine.json is damaged"),
        (b"[]", "its machine.json is damaged"),
        (b'{"origin": 5, "shape": 5}', "its machine.json is damaged"),
        (b'{"origin": {}, "shape": 5}', "its machine.json does not name the VMM"),
    ],
)
async def test_a_damaged_identity_is_refused(
    make: Make, name: str, template: Path, content: bytes | None, expected: str
) -> None:
    rig = make(name)
    if content is not None:
        (template / "machine.json").write_bytes(content)
    assert expected in await refused(rig, replace(rig.spec, template=template))
    assert len(rig.program.requests) < 3


@pytest.mark.parametrize("content", [None, b"{", b"{}", b'{"vsock": 5}'])
async def test_a_damaged_description_is_refused(make: Make, template: Path, content: bytes | None) -> None:
    saved, rig = make("clh"), make("clh")
    await save(saved, template)
    (template / "config.json").unlink()
    if content is not None:
        (template / "config.json").write_bytes(content)
    message = await refused(rig, like(rig, saved, template=template))
    assert f"cannot start from {template}: " in message
    assert "config.json" in message


@pytest.mark.parametrize("name", NAMES)
async def test_a_state_that_the_vmm_refuses(make: Make, name: str, template: Path) -> None:
    saved, rig = make(name), make(name, f"{RESTORE[name]}=400")
    await save(saved, template)
    message = await refused(rig, like(rig, saved, template=template), LaunchError)
    assert "failed to start: restoring the machine: " in message
    assert "it does not want to" in message


@pytest.mark.parametrize("name", NAMES)
async def test_restored_virtual_cpus_are_proven_before_they_run(
    make: Make, name: str, template: Path
) -> None:
    saved, rig = make(name), make(name, "leaky")
    await save(saved, template)
    message = await refused(rig, like(rig, saved, template=template), ConfinementError)
    assert "vcpu" in message


@pytest.mark.parametrize("name", NAMES)
async def test_it_is_saved_only_where_it_was_made_to_be(make: Make, name: str, template: Path) -> None:
    rig = make(name, f"{SAVE[name]}=500")
    machine = await run(rig, replace(rig.spec, saved_to=template))
    await machine.pause()
    with pytest.raises(SnapshotError, match="was not made to be saved there, but "):
        await machine.snapshot(rig.directory)
    with pytest.raises(SnapshotError, match=r"cannot save the virtual machine: .*status 500: .*want to"):
        await machine.snapshot(template)
    await machine.stop()
    other = make(name)
    assert "File exists" in await refused(other, replace(other.spec, saved_to=template))


async def test_an_older_firecracker_restores_nothing(make: Make, template: Path) -> None:
    saved, rig = make("firecracker", "version:1.15.1"), make("firecracker", "version:1.15.1")
    await save(saved, template)
    message = await refused(rig, like(rig, saved, template=template), NotSupportedError)
    assert message.startswith(f"firecracker 1.15.1 cannot start from {template}: ")
    assert "1.16 and later" in message


async def test_cloud_hypervisor_takes_no_taps_with_a_template(make: Make, template: Path) -> None:
    saved, rig = make("clh"), make("clh")
    taps = (Tap("net0", "tap0", "02:00:00:00:00:01"),)
    await save(saved, template, taps=taps)
    message = await refused(rig, like(rig, saved, template=template, taps=taps), NotSupportedError)
    assert "cannot start a machine with network devices" in message


# -- disks that come later ----------------------------------------------------------------------------------


async def test_later_disks_fill_those_that_firecracker_has_from_the_start(make: Make) -> None:
    rig = make("firecracker")
    path = rig.directory / "image"
    spec = replace(rig.spec, disks=(Disk("rootfs", path),), spare_disks=2)
    machine = await run(rig, spec)
    made = [entry for entry in rig.program.record if "/drives/spare" in entry.get("path", "")]
    assert [entry["body"]["drive_id"] for entry in made] == ["spare0", "spare1"]
    assert all(entry["body"]["path_on_host"] == "/dev/null" for entry in made)
    assert all(entry["body"]["is_read_only"] for entry in made)
    for number in range(2):
        await machine.add_disk(Disk(f"later{number}", path, read_only=True))
        assert filled(rig) == (f"/drives/spare{number}", str(path))
        assert machine.disk_node(f"later{number}") == ("/dev/vdc", "/dev/vdd")[number]
    with pytest.raises(HypervisorError, match="the 2 that the machine was made to take are in use"):
        await machine.add_disk(Disk("more", path, read_only=True))
    await machine.remove_disk("later0")
    assert filled(rig) == ("/drives/spare0", "/dev/null")
    with pytest.raises(HypervisorError, match="cannot find the disk later0: it was not plugged in"):
        await machine.remove_disk("later0")
    await machine.add_disk(Disk("more", path, read_only=True))
    assert machine.disk_node("more") == "/dev/vdc"
    await machine.stop()


async def test_a_later_disk_that_is_to_be_written_is_refused(make: Make) -> None:
    rig = make("firecracker")
    machine = await run(rig, replace(rig.spec, spare_disks=1))
    with pytest.raises(NotSupportedError, match="firecracker's later disks are read-only"):
        await machine.add_disk(Disk("later", rig.directory / "image"))
    await machine.stop()


async def test_a_fill_that_fails_leaves_the_spare_disk_for_another(make: Make) -> None:
    rig = make("firecracker", "PATCH /drives/spare0=once")
    machine = await run(rig, replace(rig.spec, spare_disks=1))
    disk = Disk("later", rig.directory / "image", read_only=True)
    with pytest.raises(HypervisorError, match=r"cannot plug the disk later: .* with status 400"):
        await machine.add_disk(disk)
    await machine.add_disk(disk)
    await machine.stop()


async def test_more_later_disks_than_there_are_interrupts(make: Make) -> None:
    rig = make("firecracker")
    message = await refused(rig, replace(rig.spec, spare_disks=13), HostUnfitError)
    assert message == "firecracker has interrupts for 12 later disks, 13 were asked for"


async def test_cloud_hypervisor_plugs_and_takes_out(make: Make) -> None:
    rig = make("clh")
    machine = await run(rig, rig.spec)
    await machine.add_disk(Disk("later", rig.directory / "image", read_only=True))
    assert machine.disk_node("later") == "/dev/disk/by-id/virtio-later"
    await machine.remove_disk("later")
    last = rig.program.record[-1]
    assert (last["path"], last["body"]) == ("/api/v1/vm.remove-device", {"id": "later"})
    await machine.stop()


@pytest.mark.parametrize("read_only", [True, False])
async def test_cloud_hypervisor_has_a_device_that_may_be_written(make: Make, read_only: bool) -> None:
    rig = make("clh")
    machine = await run(rig, rig.spec)
    await machine.add_disk(Disk("device_1", Path("/dev/block/7:0"), read_only=read_only))
    (asked,) = [entry["body"] for entry in rig.program.record if entry.get("path") == "/api/v1/vm.add-disk"]
    assert (asked["path"], asked["readonly"], asked["sparse"]) == ("/dev/block/7:0", read_only, False)
    rules = RequestFilter(machine.info.api_requests, {"/dev/block/7:0"})
    assert rules._rewrite("PUT", "/api/v1/vm.add-disk", json.dumps(asked).encode())
    await machine.stop()


async def test_cloud_hypervisor_tells_how_later_disks_are_limited_and_limits_them_so(make: Make) -> None:
    rig = make("clh")
    machine = rig.machine(disk_rate_limiter_ops_max_rate=100)
    await machine.prepare(rig.spec)
    await machine.run()
    await machine.add_disk(Disk("device_1", Path("/dev/block/7:0"), read_only=True))
    (asked,) = [entry["body"] for entry in rig.program.record if entry.get("path") == "/api/v1/vm.add-disk"]
    assert rig.host.limits == asked["rate_limiter_config"] == {"ops": {"size": 100, "refill_time": 1000}}
    rules = RequestFilter(machine.info.api_requests, {"/dev/block/7:0"}, None, rig.host.limits)
    assert rules._rewrite("PUT", "/api/v1/vm.add-disk", json.dumps(asked).encode())
    await machine.stop()


async def test_a_disk_that_the_guest_keeps_stays_the_machines(make: Make) -> None:
    rig = make("clh", "holds")
    rig.host.patience = 0.1
    machine = await run(rig, rig.spec)
    await machine.add_disk(Disk("later", rig.directory / "image", read_only=True))
    for _ in range(2):
        with pytest.raises(HypervisorError, match="take out the disk later: the guest does not let it go"):
            await machine.remove_disk("later")
    await machine.stop()


async def test_a_disk_of_a_machine_that_ends_meanwhile(make: Make) -> None:
    rig = make("clh", "holds")
    machine = await run(rig, rig.spec)
    await machine.add_disk(Disk("later", rig.directory / "image", read_only=True))
    removing = asyncio.ensure_future(machine.remove_disk("later"))
    await asyncio.sleep(0)
    await machine.stop()
    with pytest.raises(HypervisorError, match="take out the disk later: "):
        await removing


def filled(rig: RestRig) -> tuple[str, str]:
    """The last request, which fills a disk: its path, and with what."""
    last = rig.program.record[-1]
    assert last["method"] == "PATCH"
    assert last["body"]["drive_id"] == last["path"].rpartition("/")[2]
    return last["path"], last["body"]["path_on_host"]
