"""Programs that are none, or do not do what they are for: every driver, every fault, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import re
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import host_checks
from kata_hypervisor.cloud_hypervisor.driver import CloudHypervisorDriver
from kata_hypervisor.contract import SharedDirectory, UnikernelSpec, VmSpec
from kata_hypervisor.errors import HostUnfitError, HypervisorError, MachineFailedError, UnikernelError
from kata_hypervisor.firecracker.driver import FirecrackerDriver
from kata_hypervisor.qemu.driver import Qemu
from kata_hypervisor.solo5.tender import Hvt, Spt
from local_host import LocalHost
from solo5_file import abi_note, unikernel_file
from standin_program import StandInProgram, write_virtiofsd
from tables import make_table

SHORT, LONG = 0.3, 20.0  # seconds: for what never answers, and for what does
MEMORY = 128
OUTPUT = "it is not my day"
DIALECT = "#!/bin/sh\n# announce_submounts\n"  # what makes a script pass for virtiofsd
FOREIGN = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 0xFFFE, 1) + bytes(40)

# By fault: the file's content and mode, and what the error says beside the program's name.
FAULTS: dict[str, tuple[bytes | None, int, str]] = {
    "missing": (None, 0, ""),
    "a directory": (None, 0, ""),
    "not executable": (DIALECT.encode(), 0o644, ""),
    "wrong architecture": (FOREIGN + b"announce_submounts", 0o755, "Exec format error"),
    "no interpreter": (b"#!/bin/none\n# announce_submounts\n", 0o755, "No such file or directory"),
    "ends at once": (f"{DIALECT}echo {OUTPUT} >&2; exit 3\n".encode(), 0o755, f"status 3.*{OUTPUT}"),
    "says nothing": (f"{DIALECT}exit 1\n".encode(), 0o755, "status 1"),
    "ends well": (f"{DIALECT}exit 0\n".encode(), 0o755, "status 0"),
    "crashes": (f"{DIALECT}kill -SEGV $$\n".encode(), 0o755, "killed by SIGSEGV"),
    "hangs": (f"{DIALECT}kill -STOP $$\n".encode(), 0o755, rf"in {SHORT:g} s|not confined"),
    "chatters": (
        f"{DIALECT}while :; do echo {OUTPUT}; done >&2\n".encode(),
        0o755,
        rf"in {SHORT:g} s|not confined",
    ),
}


@dataclass
class Ground:
    """A host's directory, and the machines of one driver on it. program: that which is at fault."""

    directory: Path
    host: LocalHost = field(default_factory=LocalHost)
    descriptors: list[int] = field(default_factory=list)
    budget: float = LONG

    @property
    def program(self) -> Path:
        return self.directory / "bin" / "program"

    @property
    def pod(self) -> Path:
        return self.directory / "pod"

    def fail(self, fault: str) -> None:
        """Put a program there that is at fault."""
        content, mode, _ = FAULTS[fault]
        if content is not None:
            self.program.write_bytes(content)
            self.program.chmod(mode)
        elif fault == "a directory":
            self.program.mkdir()

    def spec(self, **changes: Any) -> VmSpec:
        files: dict[str, Any] = {"kernel": self.directory / "kernel", "initrd": self.directory / "initrd"}
        plain = VmSpec("bad", self.pod, vcpus=1, memory_mib=MEMORY, **files)
        return replace(plain, **changes)

    def unikernel(self, target: int, **changes: Any) -> UnikernelSpec:
        file = os.memfd_create("unikernel", os.MFD_CLOEXEC)
        os.write(file, unikernel_file(abi=abi_note(target)))
        output = os.open(os.devnull, os.O_WRONLY)
        self.descriptors += [file, output]
        return replace(UnikernelSpec("bad", self.pod, 64, "app", file, output), **changes)

    def shared(self) -> SharedDirectory:
        return SharedDirectory(self.directory / "shared")


# A Hypervisor with its VmSpec, or a UnikernelVmm with its UnikernelSpec.
Start = tuple[Any, Any]


def _qemu(ground: Ground, **changes: Any) -> Start:
    # Scripts stand in for it, which is refused where there is to be a filter of ours.
    settings = {"accelerator": "tcg", "seccompsandbox": "off"}
    table = make_table(QemuHypervisor, path=ground.program, kernel=ground.spec().kernel, **settings)
    return Qemu(table, ground.host, start_budget=ground.budget), ground.spec(**changes)


def _qemus_virtiofsd(ground: Ground, **changes: Any) -> Start:
    hanging = ground.directory / "bin" / "qemu"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    table = make_table(
        QemuHypervisor,
        path=hanging,
        kernel=ground.spec().kernel,
        accelerator="tcg",
        seccompsandbox="off",
        virtio_fs_daemon=ground.program,
    )
    return Qemu(table, ground.host, start_budget=ground.budget), ground.spec(
        shared=ground.shared(), **changes
    )


def _clh(ground: Ground, **changes: Any) -> Start:
    table = make_table(
        CloudHypervisor,
        path=ground.program,
        kernel=ground.spec().kernel,
        virtio_fs_daemon=write_virtiofsd(ground.directory / "bin"),
    )
    return CloudHypervisorDriver(table, ground.host, start_budget=ground.budget), ground.spec(**changes)


def _clhs_virtiofsd(ground: Ground, **changes: Any) -> Start:
    program = StandInProgram(ground.directory / "bin", "cloud-hypervisor")
    table = make_table(
        CloudHypervisor, path=program.path, kernel=ground.spec().kernel, virtio_fs_daemon=ground.program
    )
    return CloudHypervisorDriver(table, ground.host, start_budget=ground.budget), ground.spec(
        shared=ground.shared(), **changes
    )


def _firecracker(ground: Ground, **changes: Any) -> Start:
    table = make_table(Firecracker, path=ground.program, kernel=ground.spec().kernel)
    return FirecrackerDriver(table, ground.host, start_budget=ground.budget), ground.spec(**changes)


def _hvt(ground: Ground, **changes: Any) -> Start:
    return Hvt(make_table(Solo5Hvt, path=ground.program), ground.host), ground.unikernel(1, **changes)


def _spt(ground: Ground, **changes: Any) -> Start:
    return Spt(make_table(Solo5Spt, path=ground.program), ground.host), ground.unikernel(2, **changes)


VMMS: dict[str, Callable[..., Start]] = {"qemu": _qemu, "clh": _clh, "firecracker": _firecracker}
TENDERS: dict[str, Callable[..., Start]] = {"solo5-hvt": _hvt, "solo5-spt": _spt}
HELPERS: dict[str, Callable[..., Start]] = {
    "virtiofsd of qemu": _qemus_virtiofsd,
    "virtiofsd of clh": _clhs_virtiofsd,
}
EVERY = {**VMMS, **TENDERS, **HELPERS}


@pytest.fixture
async def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    """A ground; afterwards no process, descriptor or file of its machine is left."""
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    for name in ("bin", "pod", "shared"):
        (tmp_path / name).mkdir()
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(bytes(1024))
    before = len(os.listdir("/proc/self/fd"))
    ground = Ground(tmp_path)
    yield ground
    assert [child.name for child in ground.host.children.values() if child.exited is None] == []
    for descriptor in ground.descriptors:
        os.close(descriptor)
    await ground.host.aclose()
    assert os.listdir(ground.pod) == []
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


async def refusal(start: Start, error: type[HypervisorError] = HypervisorError) -> str:
    """Start, and return the first line of the error."""
    return str(await failure(start, error)).partition("\n")[0]


async def failure(start: Start, error: type[HypervisorError] = HypervisorError) -> HypervisorError:
    """Start, and return the error."""
    monitor, spec = start

    async def begin() -> None:
        await monitor.prepare(spec)
        await monitor.run()

    try:
        with pytest.raises(error) as caught:
            await begin()
    finally:
        await monitor.stop()
    return caught.value


# A virtiofsd that hangs is seen as the silence of the VMM that waits for it; one that ends well, as its end.
RAN = ("ends at once", "says nothing", "ends well", "crashes", "hangs", "chatters")
OF_ITS_VMM = ("hangs", "chatters", "ends well")
CELLS = [
    pytest.param(name, fault, id=f"{name}: {fault}")
    for name in EVERY
    for fault in FAULTS
    if name not in HELPERS or fault not in OF_ITS_VMM
]


@pytest.mark.parametrize(("name", "fault"), CELLS)
async def test_a_program_at_fault_is_named_and_nothing_is_left(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    if fault in ("hangs", "chatters"):
        ground.budget = SHORT
        monkeypatch.setattr(ground.host, "patience", SHORT)
    ground.fail(fault)
    error = await failure(EVERY[name](ground))
    message = str(error).partition("\n")[0]
    plain = {"clh": "cloud-hypervisor"}.get(name, name.partition(" ")[0])
    assert plain in message or str(ground.program) in message
    assert re.search(FAULTS[fault][2], message)
    assert len(message) < 500
    # A VMM that ran and failed may have failed of the KVM; a program that was not started, or a helper, not.
    assert isinstance(error, MachineFailedError) == (name in VMMS and fault in RAN)


async def test_a_script_in_front_of_qemu_is_refused_where_it_is_filtered(ground: Ground) -> None:
    ground.fail("ends at once")
    table = make_table(QemuHypervisor, path=ground.program, kernel=ground.spec().kernel, accelerator="tcg")
    message = await refusal((Qemu(table, ground.host), ground.spec()), HostUnfitError)
    assert message.startswith(f"{ground.program} is not an ELF file")
    assert message.endswith("set path to the program itself, not to a script that starts it")
    assert ground.host.children == {}


@pytest.mark.parametrize("fault", ["missing", "a directory", "not executable"])
async def test_a_jailer_that_is_none(ground: Ground, fault: str) -> None:
    ground.fail(fault)
    table = make_table(Firecracker, path="/bin/true", kernel=ground.spec().kernel, jailer_path=ground.program)
    driver = FirecrackerDriver(table, ground.host)
    message = await refusal((driver, ground.spec()), HostUnfitError)
    assert "cannot run jailer" in message
    assert (
        f"{ground.program} is not an executable file; correct jailer_path in [hypervisor.firecracker]"
        in message
    )
    assert ground.host.children == {}


# -- sockets, and their paths -------------------------------------------------------------------------------

SOCKETS = ("clh", "firecracker")


@pytest.mark.parametrize("name", [*VMMS, *TENDERS])
async def test_a_long_path_matters_only_to_sockets(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Ground, "pod", ground.directory / ("d" * 120))
    ground.pod.mkdir()
    ground.fail("ends at once")
    message = await refusal(EVERY[name](ground))
    if name in SOCKETS:
        assert re.search(
            r"cannot make .*: the path /.* has \d+ bytes, a unix socket's has at most 107; give", message
        )
        assert ground.host.children == {}
    else:
        assert "status 3" in message


# -- images that are too large ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["kernel", "initrd"])
@pytest.mark.parametrize("name", VMMS)
async def test_what_is_larger_than_the_guests_memory(ground: Ground, name: str, file: str) -> None:
    ground.fail("ends at once")
    os.truncate(ground.directory / file, MEMORY << 20)
    message = await refusal(EVERY[name](ground), HostUnfitError)
    assert message.startswith("cannot boot the guest: its kernel and initrd (")
    assert message.endswith(
        f") have 129 MiB, its memory 128 MiB; raise default_memory in [hypervisor.{name}]"
    )
    assert ground.host.children == {}


@pytest.mark.parametrize("name", TENDERS)
async def test_a_unikernel_that_is_larger_than_its_memory(ground: Ground, name: str) -> None:
    ground.fail("ends at once")
    message = await refusal(EVERY[name](ground, memory_mib=1), UnikernelError)
    assert "it needs more than 1 MiB of memory, and would get 1 MiB: raise default_memory" in message
    assert ground.host.children == {}
