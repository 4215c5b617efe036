"""Solo5's tenders: their arguments, their versions, their ends, with a shell script in their place."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import registry
from kata_hypervisor.contract import BlockFile, NetTap, UnikernelSpec, VmExit
from kata_hypervisor.errors import (
    ConfinementError,
    HostUnfitError,
    LaunchError,
    NotSupportedError,
    UnikernelError,
)
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.solo5 import tender
from kata_hypervisor.solo5.tender import Hvt, Spt
from local_host import LocalHost
from solo5_file import abi_note, entry, manifest_note, unikernel_file
from tables import make_table

TENDER = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "solo5-hvt tender, version {version}" >&2; exit 0; fi
{body}
"""


@dataclass
class Rig:
    """A tender of one's own making, a unikernel's file, and what it prints."""

    directory: Path
    spec: UnikernelSpec
    output: socket.socket
    host: LocalHost

    def monitor(self, body: str = "exit 0", version: str = "v0.12.1-7-g469c1a8", **table: object) -> Hvt:
        script = self.directory / "solo5-hvt"
        script.write_text(TENDER.format(version=version, body=body))
        script.chmod(0o755)
        return Hvt(Solo5Hvt(path=script, **table), self.host)  # type: ignore[arg-type]

    async def run(self, body: str, **changes: object) -> VmExit:
        monitor = self.monitor(body)
        await monitor.prepare(replace(self.spec, **changes))  # type: ignore[arg-type]
        await monitor.run()
        end = await monitor.wait()
        await monitor.stop()
        return end


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    file = tmp_path / "app.hvt"
    file.write_bytes(unikernel_file())
    before = len(os.listdir("/proc/self/fd"))
    descriptor = os.open(file, os.O_RDONLY)
    output, theirs = socket.socketpair()
    host = LocalHost()
    yield Rig(
        tmp_path, UnikernelSpec("one", tmp_path, 64, "app.hvt", descriptor, theirs.fileno()), output, host
    )
    await host.aclose()
    output.close()
    theirs.close()
    os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_nothing_runs_before_run(rig: Rig) -> None:
    monitor = rig.monitor('echo "$@"')
    await monitor.prepare(replace(rig.spec, command_line="two words"))
    rig.output.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.output.recv(100)
    await monitor.run()
    assert (await monitor.wait()).status == ExitStatus(code=0)
    assert rig.output.recv(1000) == b"--mem=64 -- /proc/self/fd/4 two words\n"
    await monitor.stop()


async def test_a_block_device_is_given_by_its_descriptor(rig: Rig) -> None:
    disk = rig.directory / "disk"
    disk.write_bytes(b"d" * 512)
    file = rig.directory / "block.hvt"
    file.write_bytes(unikernel_file(manifest=manifest_note(entry("storage", 1))))
    descriptors = [os.open(one, os.O_RDWR) for one in (file, disk)]
    block = BlockFile(descriptors[1])
    end = await rig.run('echo "$2"; head -c 3 "${2#--block:storage=}"', file=descriptors[0], block=block)
    assert (end.status, rig.output.recv(100)) == (ExitStatus(code=0), b"--block:storage=/proc/self/fd/5\nddd")
    for one in descriptors:
        os.close(one)


async def test_its_exit_is_reported_with_its_last_line(rig: Rig) -> None:
    end = await rig.run("echo it broke >&2; exit 3")
    assert (end.reason, end.status) == ("solo5-hvt exited: exit status 3: it broke", ExitStatus(code=3))
    assert end.diagnostics == {"solo5-hvt stderr": "it broke"}


async def test_a_refused_system_call_is_named_as_such(rig: Rig) -> None:
    assert "a system call that its seccomp filter refuses" in (await rig.run("kill -SYS $$")).reason


async def test_one_without_a_filter_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tender, "PROOF_BUDGET", 0.05)
    monitor = rig.monitor("exec sleep 60")
    await monitor.prepare(rig.spec)
    with pytest.raises(ConfinementError, match=r"seccomp mode 0 for thread .* of solo5-hvt; "):
        await monitor.run()
    assert (await monitor.wait()).requested


async def test_an_unknown_version(rig: Rig) -> None:
    with pytest.raises(HostUnfitError, match="--version does not print a version of solo5-hvt"):
        await rig.monitor(version="unknown").prepare(rig.spec)


async def test_an_old_one_behind_a_script_cannot_be_filtered(rig: Rig) -> None:
    with pytest.raises(HostUnfitError, match=r"is not an ELF file: .* set path to the program itself"):
        await rig.monitor(version="v0.10.1").prepare(rig.spec)


@pytest.mark.parametrize(
    ("table", "unconfined", "why"),
    [
        ({"disable_seccomp": True}, False, "disable_seccomp"),
        ({"honor_unconfined": True}, True, "honor_unconfined, and the container is unconfined"),
    ],
)
async def test_an_old_one_runs_without_a_filter_where_that_is_asked_for(
    rig: Rig, table: dict[str, bool], unconfined: bool, why: str
) -> None:
    monitor = rig.monitor("exec sleep 60", version="v0.10.1", **table)
    await monitor.prepare(replace(rig.spec, unconfined=unconfined))
    assert monitor.warnings == (f"solo5-hvt 0.10 runs without a seccomp filter: {why}",)
    await monitor.run()
    await monitor.verify_confinement()
    await monitor.stop()


@pytest.mark.parametrize(("honored", "unconfined"), [(False, True), (True, False)])
async def test_nobody_loses_a_filter_by_accident(rig: Rig, honored: bool, unconfined: bool) -> None:
    monitor = rig.monitor(version="v0.10.1", honor_unconfined=honored)
    with pytest.raises(HostUnfitError, match=r"is not an ELF file: .* set path to the program itself"):
        await monitor.prepare(replace(rig.spec, unconfined=unconfined))


async def test_a_switch_without_effect_is_told(rig: Rig) -> None:
    monitor = rig.monitor(disable_seccomp=True)
    await monitor.prepare(rig.spec)
    assert monitor.warnings == ("disable_seccomp changes nothing: solo5-hvt 0.12 filters itself, always",)
    await monitor.stop()


async def test_a_missing_tender(rig: Rig) -> None:
    monitor = Hvt(make_table(Solo5Hvt, path=Path("/nonexistent/solo5-hvt")), rig.host)
    with pytest.raises(LaunchError, match="cannot start solo5-hvt: /nonexistent/solo5-hvt: No such file"):
        await monitor.prepare(rig.spec)


async def test_what_is_not_for_it_is_refused_before_anything_starts(rig: Rig) -> None:
    with pytest.raises(
        UnikernelError, match="says target hvt, version 2; solo5-spt supports target spt, version 2"
    ):
        await Spt(make_table(Solo5Spt), rig.host).prepare(rig.spec)
    file = rig.directory / "net.hvt"
    file.write_bytes(unikernel_file(abi=abi_note(), manifest=manifest_note(entry("service", 2))))
    descriptor = os.open(file, os.O_RDONLY)
    spec = replace(rig.spec, file=descriptor, net=NetTap(descriptor, bytes(6)))
    with pytest.raises(NotSupportedError, match="solo5-hvt cannot take a tap as a descriptor"):
        await rig.monitor().prepare(spec)
    os.close(descriptor)
    assert rig.host.children == {}


async def test_one_that_never_ran_is_stopped(rig: Rig) -> None:
    monitor = rig.monitor("echo ran")
    await monitor.prepare(rig.spec)
    await monitor.stop()
    rig.output.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.output.recv(100)


def test_a_linux_container_is_refused_with_a_sentence() -> None:
    with pytest.raises(NotSupportedError, match=r"\[hypervisor.solo5-hvt\] runs unikernels only"):
        registry.create("solo5-hvt", make_table(Solo5Hvt), LocalHost())
