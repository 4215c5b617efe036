"""What is to be known of each driver on this host: its program, its confinement, and how that is verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kata_hypervisor import versions


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """A driver. program: how messages name what it starts. default: where that usually is, None: in process.

    supported: the versions that it was tested with, None where any does. confined, verified: a sentence each.
    """

    program: str
    default: Path | None
    supported: versions.Supported | None
    confined: str
    verified: str


DRIVERS = {
    "qemu": DriverFacts(
        "qemu",
        Path("/usr/bin/qemu-system-x86_64"),
        None,
        "its own filter on the whole process: seccompsandbox; with a unikernel in it, all four groups denied",
        "what the kernel reports of every thread, before the guest runs and after",
    ),
    "clh": DriverFacts(
        "cloud-hypervisor",
        Path("/usr/bin/cloud-hypervisor"),
        versions.CLOUD_HYPERVISOR,
        "its own filters, a thread each, two on a virtual CPU, and a wrapper filter of ours below them, also "
        "on its main thread, which only waits: disable_seccomp",
        "what the kernel reports of every thread, before the guest runs and after",
    ),
    "firecracker": DriverFacts(
        "firecracker",
        Path("/usr/bin/firecracker"),
        versions.FIRECRACKER,
        "its own filters, a thread each: disable_seccomp; its jailer: jailer_path",
        "what the kernel reports of its API's thread before the guest runs, and of every thread after",
    ),
    "dragonball": DriverFacts(
        "dragonball",
        None,
        None,
        "the runtime's own filter, and a second one on each virtual CPU: disable_seccomp, shim_seccomp",
        "what the kernel reports of every thread of the runtime's process, before the guest runs and after",
    ),
    "solo5-hvt": DriverFacts(
        "solo5-hvt",
        Path("/usr/bin/solo5-hvt"),
        versions.SOLO5_HVT,
        "its own filter on the whole process, always; before 0.11 ours, put on before it is executed: "
        "disable_seccomp, honor_unconfined",
        "what the kernel reports of every thread, right after the unikernel has started; before 0.11, before "
        "the program is executed",
    ),
    "solo5-spt": DriverFacts(
        "solo5-spt",
        Path("/usr/bin/solo5-spt"),
        versions.SOLO5_SPT,
        "its own filter on the whole process, always",
        "what the kernel reports of every thread, right after the unikernel has started",
    ),
}
