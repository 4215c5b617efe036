"""Every request that the drivers make and every answer of the stand-in, by the VMMs' own descriptions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import openapi
from kata_hypervisor import host_checks, versions
from kata_hypervisor.contract import Disk, MachineSize, Tap, VmSpec
from openapi import Description
from rest_rig import RestRig

LIMITS = {
    "disk_rate_limiter_bw_max_rate": 8_000_000,
    "disk_rate_limiter_bw_one_time_burst": 16_000_000,
    "disk_rate_limiter_ops_max_rate": 100,
}


async def live(rig: RestRig, spec: VmSpec, template: Path, settings: dict[str, Any]) -> None:
    """Have machines go through everything that their driver can do."""
    machine = rig.machine(**settings)
    try:
        await machine.prepare(replace(spec, saved_to=template))
        await machine.run()
        if machine.capabilities.block_hotplug:
            await machine.add_disk(Disk("later", rig.directory / "image", read_only=True))
            await machine.remove_disk("later")
        if machine.capabilities.resize:
            await machine.resize(MachineSize(spec.vcpus, spec.memory_mib))
        await machine.pause()
        await machine.snapshot(template)
        await machine.resume()
    finally:
        await machine.stop()


async def live_again(rig: RestRig, spec: VmSpec, template: Path, settings: dict[str, Any]) -> None:
    """Have a machine go on from a saved one."""
    machine = rig.machine(**settings)
    try:
        await machine.prepare(replace(spec, template=template))
        await machine.run()
    finally:
        await machine.stop()


@pytest.mark.parametrize("settings", [{}, LIMITS], ids=["plain", "limited"])
@pytest.mark.parametrize(("name", "file"), openapi.specifications())
async def test_what_is_asked_and_answered_keeps_to_the_description(
    name: str, file: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    if name == "clh" and settings:
        settings = {**settings, "enable_mem_prealloc": True, "reclaim_guest_freed_memory": True}
    if name == "firecracker" and settings:
        settings = {**settings, "rx_rate_limiter_max_rate": 8_000_000, "tx_rate_limiter_max_rate": 1}
    version = ".".join(map(str, versions.numbers_of(file.stem) or ()))
    directory, template, bare = tmp_path / "m", tmp_path / "template", tmp_path / "bare"
    for path in (directory, template, bare):
        path.mkdir()
    rig = RestRig(directory, name, f"version:{version}")
    reader, writer = os.pipe()
    tap = Tap("net0", "tap0", "02:00:00:00:00:01", fds=(reader, writer) if name == "clh" else ())
    try:
        spec = replace(rig.spec, disks=(Disk("data", rig.directory / "image"),), taps=(tap,), spare_disks=1)
        await live(rig, spec, template, settings)
        untapped = replace(spec, taps=())
        if name == "clh":
            await live(rig, untapped, bare, settings)
            await live_again(rig, untapped, bare, settings)
        elif version >= "1.16":
            await live_again(rig, spec, template, settings)
    finally:
        await rig.host.aclose()
        os.close(reader)
        os.close(writer)
    description = Description(file)
    entries = [entry for entry in rig.program.record if "method" in entry]
    assert len(entries) > 8
    for entry in entries:
        description.check_request(entry["method"], entry["path"], entry["body"])
        description.check_answer(entry["method"], entry["path"], entry["status"], entry["answer"])
    taken = {entry["path"]: entry["fds"] for entry in entries if entry["fds"]}
    assert taken == ({"/api/v1/vm.add-net": ["pipe", "pipe"]} if name == "clh" else {})


@pytest.mark.parametrize(("name", "file"), openapi.specifications())
def test_the_descriptions_are_read_strictly(name: str, file: Path) -> None:
    """What is checked above can fail."""
    description = Description(file)
    wrong: list[tuple[str, str, Any]] = {
        "clh": [
            ("PUT", "/api/v1/vm.boot", {}),
            ("PUT", "/api/v1/vm.create", {"cpus": {"boot_vcpus": 1, "max_vcpus": 1}}),
            ("PUT", "/api/v1/vm.create", {"payload": {}, "memory": {"size": "1 GiB"}}),
            ("PUT", "/api/v1/vm.create", {"payload": {}, "memroy": {"size": 1}}),
            ("GET", "/api/v1/vm.create", None),
            ("PUT", "/vm.boot", None),
        ],
        "firecracker": [
            ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}),
            ("PUT", "/drives/x", {"drive_id": "x"}),
            ("PUT", "/boot-source", {"kernel_image_path": "/k", "cmdline": ""}),
            ("PATCH", "/vm", {"state": "Running"}),
            ("PUT", "/nothing", {}),
        ],
    }[name]
    for method, path, body in wrong:
        with pytest.raises((AssertionError, jsonschema.ValidationError)):
            description.check_request(method, path, body)
