"""The probe's positive result, on a real KVM: kvm-amd inside QEMU, which emulates AMD's SVM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import kata_hypervisor.kvm
from kata_runtime.image import builder, initramfs
from kata_runtime.image.agent import Agent

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# Takes the guest agent's place: mounts nothing, runs the probe, tells the console, and powers off.
PROBE_AS_AGENT = """
import ctypes, sys

def main():
    sys.path.insert(0, "/usr/lib/kata-agent/kata_agent")
    from kata_hypervisor.kvm.machine import observe
    from kata_hypervisor.kvm.probe import judge
    with open("/dev/console", "w") as console:
        print("RESULT", judge("/dev/kvm", observe("/dev/kvm")), file=console, flush=True)
    ctypes.CDLL(None).reboot(0x4321FEDC)
"""


class Silent:
    def step(self, title: str) -> None:
        pass

    def advance(self, fraction: float) -> None:
        pass


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image whose agent is the probe, and whose initramfs loads kvm-amd."""
    agent = tmp_path / "kata_agent"
    (agent / "guest").mkdir(parents=True)
    (agent / "__init__.py").touch()
    (agent / "guest/__init__.py").touch()
    (agent / "guest/main.py").write_text(PROBE_AS_AGENT)
    room = agent / "kata_hypervisor"
    shutil.copytree(Path(kata_hypervisor.kvm.__file__).parent, room / "kvm")
    (room / "__init__.py").touch()
    monkeypatch.setattr(initramfs, "MODULES", (*initramfs.MODULES, "kvm_amd"))
    output = tmp_path / "image"
    request = builder.Build(output=output, agent=Agent(agent, Agent.installed().protobuf))
    builder.build(request, Silent())
    return output


def test_a_kvm_on_hardware_virtualization_runs_the_trials(image: Path) -> None:
    qemu = "qemu-system-x86_64 -machine q35,accel=tcg -cpu EPYC-Rome,+svm,+npt -m 512 -nographic -nodefaults"
    finished = subprocess.run(
        [
            *qemu.split(),
            *("-no-reboot", "-serial", "stdio"),
            *("-kernel", str(image / builder.KERNEL), "-initrd", str(image / builder.INITRAMFS)),
            *("-drive", f"file={image / builder.IMAGE},if=none,id=root,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-append", "console=ttyS0 quiet panic=1 reboot=k root=/dev/vda rootfstype=erofs"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    console = finished.stdout.decode("utf-8", "replace")
    _, _, result = console.partition("RESULT")
    assert "usable=True, runs_unmodified_guests=True" in result, console[-2000:]
