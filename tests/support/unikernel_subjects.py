"""The monitors of unikernels that the conformance suite tries: a stand-in, the real tender, or this process.

KATA_TEST_SOLO5_HVT, KATA_TEST_SOLO5_SPT and KATA_TEST_FIRECRACKER name real programs; without them those on
PATH are tried. KATA_TEST_SOLO5_HVT_OLD names a tender before 0.11, which has no filter of its own. What is
run does as tests/guests/commands.c, or bare.c, for three command lines: "echo TEXT", "exit STATUS", "spin".
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.dragonball import Dragonball
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.models.solo5 import Solo5Hvt, Solo5Spt
from kata_hypervisor import host_checks, registry
from kata_hypervisor.contract import UnikernelSpec, UnikernelVmm
from kata_hypervisor.host import ExitStatus
from local_host import LocalHost
from old_tender import build_old_tender
from solo5_file import abi_note, entry, manifest_note, unikernel_file
from standin_program import StandInProgram
from tiny_guest import kernel
from unikernel import build_bare, build_unikernel

SUPPORT = Path(__file__).parent
MODELS: dict[str, Callable[..., Any]] = {"solo5-hvt": Solo5Hvt, "solo5-spt": Solo5Spt}
TARGETS = {"solo5-hvt": 1, "solo5-spt": 2, "dragonball": 1}
BARE = ("qemu", "firecracker")  # whose guests declare no devices
BLOCK, NET = 1, 2
OLD = frozenset({"tap_names"})
QEMU = Path("/usr/bin/qemu-system-x86_64")

TENDER = """\
#!{python} -IS
import os, sys, time
if sys.argv[1:] == ["--version"]:
    sys.exit("{name} tender, version v0.12.1")
sys.path.insert(0, {support!r})
from standin_vmm import StandIn
standin = StandIn("tender", "", "")
standin.sealed = True
standin.filter()
verb, _, argument = sys.argv[-1].partition(" ")
if verb == "exit":
    sys.exit(int(argument))
os.write(1, b"spinning\\n" if verb == "spin" else sys.argv[-1].encode())
while verb == "spin":
    time.sleep(60)
"""


@dataclass
class Bench:
    """One unikernel to be run. spec: without a file. output: what it prints. file_for: a file that does what
    a command line says. killed: how it ends when its process is killed, and the start of that sentence.
    in_process: None, or why there is no process to look at, or to start. real_taps: whether a network device
    must be on a tap. added: what is put behind a command line. lacks: capabilities that this version has not.
    """

    name: str
    spec: UnikernelSpec
    output: socket.socket
    make: Callable[..., UnikernelVmm]
    file_for: Callable[[str], bytes]
    host: LocalHost = field(default_factory=LocalHost)
    killed: tuple[ExitStatus, str] = (ExitStatus(signal=signal.SIGKILL), "solo5-")
    in_process: str | None = None
    real_taps: bool = False
    added: bytes = b""
    lacks: frozenset[str] = frozenset()

    def spec_for(self, line: str) -> UnikernelSpec:
        """The specification of a unikernel with this command line."""
        return replace(self.spec, file=self.open(self.file_for(line)), command_line=line)

    def open(self, content: bytes) -> int:
        """A descriptor of such a file, until `close`."""
        descriptor = os.memfd_create("unikernel", os.MFD_CLOEXEC)
        os.write(descriptor, content)
        self._open.append(descriptor)
        return descriptor

    _open: list[int] = field(default_factory=list)

    def printed(self) -> bytes:
        """What it has printed since this was asked last."""
        try:
            return self.output.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def with_device(self, kind: int) -> bytes:
        """A unikernel with a device, BLOCK or NET, which it declares where it has a manifest."""
        if self.name in BARE:
            return self.file_for("echo words")
        abi = abi_note(TARGETS[self.name])
        return unikernel_file(abi=abi, manifest=manifest_note(entry("device", kind)))

    def with_undeclared(self) -> bytes:
        """A unikernel of Solo5's, which declares a device that it is not given."""
        abi = abi_note(TARGETS.get(self.name, 1))
        return unikernel_file(abi=abi, manifest=manifest_note(entry("device", NET)))

    def foreign(self) -> bytes:
        """A unikernel of a target that is nobody's here."""
        return unikernel_file(abi=abi_note(5))

    async def close(self) -> None:
        """End what a failed test has left."""
        await self.host.aclose()
        for descriptor in (*self._open, self.spec.output):
            os.close(descriptor)
        self.output.close()


def _bench(name: str, directory: Path, table: Callable[..., Any], file_for: Callable[[str], bytes]) -> Bench:
    output, theirs = socket.socketpair()
    host = LocalHost()
    spec = UnikernelSpec("bench", directory, 32, "app", -1, theirs.detach())

    def make(**settings: Any) -> UnikernelVmm:
        return registry.create_for_unikernel(name, table(**settings), host)

    return Bench(name, spec, output, make, file_for, host)


def _tender(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    variable = f"KATA_TEST_{name.upper().replace('-', '_')}"
    path = os.environ.get(variable) or shutil.which(name)
    if not path or not Path(path).exists():
        pytest.skip(f"{name} is missing: put it on PATH, or name it in {variable}")
    return _bench(name, directory, _at(name, Path(path)), _files(name, directory))


def _old_tender(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    path = os.environ.get("KATA_TEST_SOLO5_HVT_OLD", "")
    if not Path(path).is_file():
        pytest.skip("an old tender is missing: name a solo5-hvt before 0.11 in KATA_TEST_SOLO5_HVT_OLD")
    bench = _bench("solo5-hvt", directory, _at("solo5-hvt", Path(path)), _files("solo5-hvt", directory))
    return replace(bench, lacks=OLD)


def _old_standin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program, file = build_old_tender(directory), unikernel_file()
    return replace(_bench("solo5-hvt", directory, _at("solo5-hvt", program), lambda line: file), lacks=OLD)


def _standin(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = directory / name
    program.write_text(TENDER.format(python=sys.executable, name=name, support=str(SUPPORT)))
    program.chmod(0o755)
    file = unikernel_file(abi=abi_note(TARGETS[name]))
    return _bench(name, directory, _at(name, program), lambda line: file)


def _at(name: str, path: Path) -> Callable[..., Any]:
    return lambda **settings: MODELS[name](**{"path": path, **settings})


def _in_process(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    table = partial(Dragonball, kernel=Path("/nonexistent"))
    return replace(
        _bench("dragonball", directory, table, _files("dragonball", directory)),
        in_process="the unikernel is in the test's own process, which has no program and is not sealed",
        killed=(ExitStatus(signal=signal.SIGABRT), "the unikernel was killed"),
    )


def _qemu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if not QEMU.exists():
        pytest.skip(f"{QEMU} is missing: run make packages")
    table = partial(QemuHypervisor, kernel=Path("/nonexistent"), accelerator="tcg")
    return _bare("qemu", directory, lambda **settings: table(**{"path": QEMU, **settings}))


def _firecracker(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    path = os.environ.get("KATA_TEST_FIRECRACKER") or shutil.which("firecracker")
    if not path or not Path(path).exists():
        pytest.skip("firecracker is missing: put it on PATH, or name it in KATA_TEST_FIRECRACKER")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    return replace(_bare("firecracker", directory, _firecracker_at(Path(path))), added=b" pci=off")


def _firecracker_standin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    (directory / "bin").mkdir()
    program = StandInProgram(directory / "bin", "firecracker", "")
    file = kernel(b"", pvh=True)
    bench = _bench("firecracker", directory, _firecracker_at(program.path), lambda line: file)
    return replace(bench, killed=(bench.killed[0], "firecracker was killed by SIGKILL"))


def _firecracker_at(path: Path) -> Callable[..., Any]:
    return lambda **settings: Firecracker(**{"kernel": Path("/nonexistent"), "path": path, **settings})


def _bare(name: str, directory: Path, table: Callable[..., Any]) -> Bench:
    content = build_bare(directory).read_bytes()
    bench = _bench(name, directory, table, lambda line: content)
    return replace(bench, killed=(bench.killed[0], f"{name} was killed by SIGKILL"), real_taps=True)


def _files(name: str, directory: Path) -> Callable[[str], bytes]:
    """Real unikernels: compiled for hvt; for spt, which makes system calls, of a few instructions."""
    if TARGETS[name] == TARGETS["solo5-spt"]:
        return lambda line: unikernel_file(abi=abi_note(TARGETS[name]), code=spt_code(line))
    if name == "solo5-hvt" and not os.path.exists("/dev/kvm"):
        pytest.skip("needs /dev/kvm")
    content = build_unikernel(directory).read_bytes()
    return lambda line: content


def spt_code(line: str) -> bytes:
    """What a command line asks for, as machine code of x86_64."""
    verb, _, argument = line.partition(" ")
    if verb == "exit":
        return _system_call(231, int(argument))  # exit_group
    text = b"spinning\n" if verb == "spin" else line.encode()
    # lea rsi, [rip + to behind the code]; mov edx, length; write(1, ...)
    after = b"\xeb\xfe" if verb == "spin" else _system_call(231, 0)
    print_it = b"\xba" + struct.pack("<I", len(text)) + _system_call(1, 1)
    return b"\x48\x8d\x35" + struct.pack("<i", len(print_it + after)) + print_it + after + text


def _system_call(number: int, first: int) -> bytes:
    """mov eax, number; mov edi, first; syscall"""
    return b"\xb8" + struct.pack("<I", number) + b"\xbf" + struct.pack("<I", first) + b"\x0f\x05"


SUBJECTS: dict[str, Callable[[Path, pytest.MonkeyPatch], Bench]] = {
    "solo5-hvt:standin": partial(_standin, "solo5-hvt"),
    "solo5-spt:standin": partial(_standin, "solo5-spt"),
    "solo5-hvt-old:standin": _old_standin,
    "solo5-hvt": partial(_tender, "solo5-hvt"),
    "solo5-hvt-old": _old_tender,
    "solo5-spt": partial(_tender, "solo5-spt"),
    "dragonball": _in_process,
    "qemu": _qemu,
    "firecracker:standin": _firecracker_standin,
    "firecracker": _firecracker,
}


def bench_of(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench of a subject; a driver in the registry without one fails."""
    if name not in SUBJECTS:
        pytest.fail(f"the driver {name} has no bench in {__name__}.SUBJECTS")
    return SUBJECTS[name](directory, monkeypatch)


def parameters() -> list[Any]:
    """The subjects for pytest, and every driver that has none.

    Those that need KVM or a real tender are integration tests.
    """
    with_bench = {name.partition(":")[0] for name in SUBJECTS}
    others = [info.name for info in registry.DRIVERS if info.unikernel and info.name not in with_bench]
    return [
        pytest.param(name, id=name, marks=() if "standin" in name else pytest.mark.integration)
        for name in (*SUBJECTS, *others)
    ]
