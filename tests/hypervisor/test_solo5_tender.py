"""Solo5's tenders: their arguments, their versions, their ends, with a shell script in their place."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
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
from kata_hypervisor.privileges import TUN
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


@pytest.fixture
def net(rig: Rig) -> Iterator[UnikernelSpec]:
    """A unikernel with a network device."""
    file = rig.directory / "net.hvt"
    file.write_bytes(unikernel_file(manifest=manifest_note(entry("service", 2))))
    descriptor = os.open(file, os.O_RDONLY)
    yield replace(rig.spec, file=descriptor, net=NetTap(-1, bytes.fromhex("020000000044"), 1400, "tap0_kata"))
    os.close(descriptor)


async def test_a_network_device_is_given_by_its_name(rig: Rig, net: UnikernelSpec) -> None:
    end = await rig.run('echo "$2 $3"', file=net.file, net=net.net)
    assert end.status == ExitStatus(code=0)
    assert rig.output.recv(100) == b"--net:service=tap0_kata --net-mac:service=02:00:00:00:00:44\n"


async def test_only_who_has_a_network_is_in_the_pods(rig: Rig, net: UnikernelSpec) -> None:
    for spec in (rig.spec, net):
        monitor = rig.monitor()
        await monitor.prepare(spec)
        privileges = rig.host.privileges["solo5-hvt"]
        assert privileges is not None
        assert (privileges.network, TUN in privileges.devices) == (spec is net, spec is net)
        await monitor.stop()


@pytest.mark.parametrize("disk", [0, 512, 1 << 20])
async def test_it_may_write_its_own_filter_and_its_disk(rig: Rig, disk: int) -> None:
    """A tender writes its filter to a memfd, for which the limit holds: of a real one without a disk this is
    test_unikernel_tender.py's."""
    content = unikernel_file(manifest=manifest_note(*([entry("storage", 1)] if disk else [])))
    spec = replace(rig.spec, file=memory_file(content), block=BlockFile(memory_file(bytes(disk))))
    monitor = rig.monitor()
    await monitor.prepare(spec if disk else replace(spec, block=None))
    privileges = rig.host.privileges["solo5-hvt"]
    assert privileges is not None
    assert privileges.file_size == max(disk, 4096 * 8)
    await monitor.stop()
    for one in (spec.file, spec.block.descriptor):  # type: ignore[union-attr]
        os.close(one)


def memory_file(content: bytes) -> int:
    """A descriptor of a file with this content."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


@pytest.mark.parametrize("table", [{}, {"disable_seccomp": True}])
async def test_an_old_one_gets_no_network(rig: Rig, net: UnikernelSpec, table: dict[str, bool]) -> None:
    with pytest.raises(NotSupportedError, match=r"solo5-hvt 0\.10 gets no network device: install 0\.11 or"):
        await rig.monitor("exit 0", "v0.10.1", **table).prepare(net)


async def test_a_tap_whose_name_it_takes_for_a_number(rig: Rig, net: UnikernelSpec) -> None:
    assert net.net is not None
    with pytest.raises(NotSupportedError, match="takes the tap '@4' for the number of a descriptor"):
        await rig.monitor().prepare(replace(net, net=replace(net.net, name="@4")))


async def test_its_exit_is_reported_with_its_last_line(rig: Rig) -> None:
    end = await rig.run("echo it broke >&2; exit 3")
    assert (end.reason, end.status) == ("solo5-hvt exited: exit status 3: it broke", ExitStatus(code=3))
    assert end.diagnostics == {"solo5-hvt stderr": "it broke"}


async def test_a_refused_system_call_is_named_as_such(rig: Rig) -> None:
    assert "a system call that its seccomp filter refuses" in (await rig.run("kill -SYS $$")).reason


async def test_one_without_a_filter_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.host, "patience", 0.05)
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


async def test_it_is_used_once(rig: Rig) -> None:
    monitor = rig.monitor()
    await monitor.prepare(rig.spec)
    with pytest.raises(LaunchError, match="cannot start the unikernel of one: it was used before"):
        await monitor.prepare(rig.spec)
    await monitor.stop()
    with pytest.raises(LaunchError, match="it is not prepared"):
        await monitor.run()


async def test_a_cancelled_start_leaves_no_process(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.host, "patience", 0.05)
    script = rig.directory / "solo5-hvt"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monitor = Hvt(make_table(Solo5Hvt, path=script), rig.host)
    start = asyncio.create_task(monitor.prepare(rig.spec))
    while "solo5-hvt" not in rig.host.children:  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert rig.host.children["solo5-hvt"].exited == ExitStatus(signal=signal.SIGKILL)


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
