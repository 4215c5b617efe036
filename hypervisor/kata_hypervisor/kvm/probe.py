"""Whether a /dev/kvm runs unmodified guests, found out by running one."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import kata_hypervisor
from kata_hypervisor.kvm.guest import TRIALS
from kata_hypervisor.kvm.machine import PROCESSOR_TIME, Observation

DEVICE = "/dev/kvm"
DEADLINE = 30.0
ROOM = str(Path(kata_hypervisor.__file__).parents[1])
CHILD = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from kata_hypervisor.kvm.machine import main; main()"
)


@dataclass(frozen=True, slots=True)
class KvmProbeResult:
    """What a KVM device is good for.

    usable: it was seen to make virtual machines. runs_unmodified_guests: a stock kernel will run in them.
    reason: one sentence, with what to do where something can be done.
    """

    usable: bool
    runs_unmodified_guests: bool
    reason: str


def probe_kvm(device: str = DEVICE, deadline: float = DEADLINE) -> KvmProbeResult:
    """Run the trials of guest.py on a KVM device, in a process of its own that is killed at the deadline.

    deadline: seconds. Blocks for about 50 ms; never raises for what a device may do. A guest that does not
    end is told by the processor's time that it takes. The deadline is for who waits, and tells nothing of the
    KVM: on a busy host anything takes long.
    """
    if platform.machine() != "x86_64":
        return KvmProbeResult(
            False, False, f"cannot probe {device} on {platform.machine()}: the probe's guest is for x86_64"
        )
    try:
        child = subprocess.run(
            [sys.executable, "-IS", "-c", CHILD, ROOM, device],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return KvmProbeResult(
            False,
            False,
            f"the probe of {device} got no result within {deadline:g} seconds: this host is very busy, or "
            "its KVM hangs; try again",
        )
    if child.returncode == -signal.SIGPROF:
        why = f"a guest of a few instructions did not end in {PROCESSOR_TIME:g} seconds of processor time"
        return KvmProbeResult(True, False, f"{device} does not run a plain guest: {why}")
    if child.returncode:
        last = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return KvmProbeResult(
            False, False, f"the probe of {device} exited with status {child.returncode}: {last}"
        )
    fields = json.loads(child.stdout)
    return judge(device, Observation(**fields | {"results": tuple(fields["results"])}))


def judge(device: str, seen: Observation) -> KvmProbeResult:
    """Return what the observation means."""
    if seen.refused is not None:
        return KvmProbeResult(False, False, seen.refused)
    for number, trial in enumerate(TRIALS):
        if number >= len(seen.results):
            kind = "this KVM only emulates" if seen.emulates else "this KVM does not run a plain guest"
            return KvmProbeResult(
                True, False, f"{kind}: {trial.name} in the guest's kernel ended with {seen.end}"
            )
        if seen.results[number] != trial.expected:
            what = (
                f"{trial.name} in the guest's kernel gave {seen.results[number]:#x}, not {trial.expected:#x}"
            )
            return KvmProbeResult(True, False, f"this KVM computes wrongly: {what}")
    if seen.end != "KVM_EXIT_HLT":
        return KvmProbeResult(
            True, False, f"this KVM does not run a plain guest: its halt ended with {seen.end}"
        )
    return KvmProbeResult(True, True, f"{device} runs unmodified guests: a small one has just run")
