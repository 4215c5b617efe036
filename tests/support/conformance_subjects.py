"""The drivers that the conformance suite tries, each on its own ground: a stand-in or the real program.

KATA_TEST_CLOUD_HYPERVISOR, KATA_TEST_FIRECRACKER and KATA_TEST_JAILER name real programs; without them those
on PATH are tried. A jailed Firecracker must be linked statically. "dragonball:tiny" is the in-process machine
with a guest of a few instructions, on whatever KVM this host has, and without vhost-vsock.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.dragonball import Dragonball
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor import host_checks, registry, vhost_vsock
from kata_hypervisor.contract import Hypervisor, SharedDirectory, VmSpec
from kata_hypervisor.dragonball.virtio import vsock
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.kvm.probe import probe_kvm
from local_host import LocalHost
from rest_rig import RestRig
from tiny_guest import SPIN, kernel, say

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
GUEST = {"kernel": "vmlinuz", "initrd": "kata-initrd.img", "image": "kata-image.erofs"}
IN_THE_RIG = "run make rig ARGS='pytest -m integration -k dragonball tests/hypervisor/test_conformance.py'"
KILLED = ExitStatus(signal=signal.SIGKILL)


@dataclass
class Bench:
    """One machine to be made. vmm: the name of its process. runs_guests: None, or why no guest
    gets far here. kept: what of the directory is not the machine's. snapshots: None, or why
    none can be made here. agentless: None, or why no agent will answer. in_process: None, or why there
    is no process to look at, or to start. plugs: None, or why nothing can be plugged into its guests here.
    plugs_when_booted: whether a guest has to have booted for that.
    killed: how the machine ends whose process is killed, and the start of the sentence."""

    host: LocalHost
    spec: VmSpec
    vmm: str
    make: Callable[..., Hypervisor]
    unconfined: dict[str, Any]
    runs_guests: str | None = None
    kept: tuple[str, ...] = ()
    snapshots: str | None = None
    agentless: str | None = None
    in_process: str | None = None
    plugs: str | None = None
    plugs_when_booted: bool = False
    killed: tuple[ExitStatus, str] | None = None

    @property
    def end(self) -> tuple[ExitStatus, str]:
        """How a machine ends that is killed."""
        return self.killed or (KILLED, f"{self.vmm} was killed by SIGKILL")

    def left(self) -> list[str]:
        """What is in the sandbox's directory that was not before."""
        return sorted(set(os.listdir(self.spec.directory)) - set(self.kept))


def _standin(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(host_checks, "KVM", Path(os.devnull))
    rig = RestRig(directory, name)
    vmm = {"clh": "cloud-hypervisor"}.get(name, name)
    spec = replace(rig.spec, shared=None)
    return Bench(
        rig.host, spec, vmm, rig.machine, {"disable_seccomp": True}, kept=tuple(os.listdir(directory))
    )


def _real(name: str, vmm: str, model: Any, directory: Path, **settings: Any) -> Bench:
    missing = [str(IMAGE / file) for file in GUEST.values() if not (IMAGE / file).exists()]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"no guest image: {missing[0]} is missing" if missing else "needs root")
    host = LocalHost()
    (directory / "shared").mkdir()
    files: dict[str, Any] = {key: IMAGE / file for key, file in GUEST.items()}

    def make(**more: Any) -> Hypervisor:
        return registry.create(name, model(**{"kernel": files["kernel"], **settings, **more}), host)

    spec = VmSpec("bench", directory, vcpus=1, memory_mib=256, **files)
    off = {"seccompsandbox": "off"} if name == "qemu" else {"disable_seccomp": True}
    return Bench(host, spec, vmm, make, off, kept=("shared",))


def _program(variable: str, name: str) -> Path:
    found = os.environ.get(variable) or shutil.which(name)
    if not found or not Path(found).exists():
        pytest.skip(f"{name} is missing: put it on PATH, or name it in {variable}")
    return Path(found)


def _on_kvm(bench: Bench) -> Bench:
    result = probe_kvm()
    return replace(bench, runs_guests=None if result.runs_unmodified_guests else result.reason)


def _qemu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = Path("/usr/bin/qemu-system-x86_64")
    if not program.exists():
        pytest.skip(f"{program} is missing: run make packages")
    return _real("qemu", "qemu", QemuHypervisor, directory, path=program, accelerator="tcg")


def _clh(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = _program("KATA_TEST_CLOUD_HYPERVISOR", "cloud-hypervisor")
    bench = _real("clh", "cloud-hypervisor", CloudHypervisor, directory, path=program)
    bench = _on_kvm(bench)
    return replace(bench, snapshots=bench.runs_guests)  # it saves state that an emulating KVM does not have


def _firecracker(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = _program("KATA_TEST_FIRECRACKER", "firecracker")
    return _on_kvm(_real("firecracker", "firecracker", Firecracker, directory, path=program))


def _jailed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    program = _program("KATA_TEST_FIRECRACKER", "firecracker")
    jailer = _program("KATA_TEST_JAILER", "jailer")
    if b"/ld-linux" in program.read_bytes()[:4096]:
        pytest.skip(f"{program} is linked dynamically: the jailer takes a static one")
    bench = _real("firecracker", "firecracker", Firecracker, directory, path=program, jailer_path=jailer)
    return _on_kvm(replace(bench, kept=("shared", "jail")))


def _in_process(bench: Bench) -> Bench:
    return replace(
        bench,
        in_process="the machine is in the test's own process, which has no program and is not sealed",
        killed=(ExitStatus(code=0), "the guest ended: it was killed"),
    )


def _tiny(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    monkeypatch.setattr(vsock.Socket, "connect", lambda device, context: None)  # a memfd is no vhost device
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: (os.memfd_create("vsock"), 3))
    host, path = LocalHost(), directory / "kernel"
    path.write_bytes(kernel(say(b"hello\n") + SPIN))
    (directory / "shared").mkdir()

    def make(**more: Any) -> Hypervisor:
        return registry.create("dragonball", _dragonball_table(path, **more), host)

    spec = VmSpec("bench", directory, 1, 16, path)
    kept = ("kernel", "shared")
    bench = Bench(host, spec, "dragonball", make, {"disable_seccomp": True}, kept=kept)
    few = "a guest of a few instructions has no agent, and no kernel that plugs anything"
    return _in_process(replace(bench, agentless=few, plugs=few))


def _dragonball_table(kernel: Path, **settings: Any) -> Dragonball:
    daemon = next((path for path in VIRTIOFSD_PLACES if path.exists()), VIRTIOFSD_PLACES[0])
    return Dragonball(kernel=kernel, virtio_fs_daemon=daemon, **settings)


def _dragonball(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if not vhost_vsock.DEVICE.exists():
        pytest.skip(f"{vhost_vsock.DEVICE} is missing: {IN_THE_RIG}")

    bench = _on_kvm(_real("dragonball", "dragonball", _dragonball_table, directory))
    return _in_process(replace(bench, plugs=bench.runs_guests, plugs_when_booted=True))


SUBJECTS: dict[str, Callable[[Path, pytest.MonkeyPatch], Bench]] = {
    "clh:standin": partial(_standin, "clh"),
    "firecracker:standin": partial(_standin, "firecracker"),
    "qemu": _qemu,
    "clh": _clh,
    "firecracker": _firecracker,
    "firecracker:jailed": _jailed,
    "dragonball": _dragonball,
    "dragonball:tiny": _tiny,
}


def bench_of(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench of a subject; a driver in the registry without one fails."""
    if name not in SUBJECTS:
        pytest.fail(f"the driver {name} has no bench in {__name__}.SUBJECTS")
    return SUBJECTS[name](directory, monkeypatch)


def parameters() -> list[Any]:
    """The subjects for pytest, and every driver that has none.

    Those that need root or a real program are integration tests.
    """
    with_bench = {name.partition(":")[0] for name in SUBJECTS}
    others = [info.name for info in registry.DRIVERS if info.machine and info.name not in with_bench]
    return [
        pytest.param(name, id=name, marks=() if "standin" in name else pytest.mark.integration)
        for name in (*SUBJECTS, *others)
    ]


def share(spec: VmSpec) -> VmSpec:
    """The same machine with a shared directory."""
    return replace(spec, shared=SharedDirectory(spec.directory / "shared"))
