"""What checks of a host find, and what the host is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Status(StrEnum):
    """What a finding means: fine, works with a loss, does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. cause: one line. fix: a command or an edit, empty where nothing is to be done."""

    name: str
    status: Status
    cause: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the host is checked against: the configuration in force, or what we ship where there is none.

    accelerator: "kvm", or "tcg" where no KVM is needed. program: what runs virtual machines, None where that
    is the runtime's own process. virtiofsd: None where no files are shared. artifacts: of the guest, none
    where it brings its own. full_kvm: whether KVM must run unmodified guests. hypervisor: the driver's name.
    """

    accelerator: str
    program: Path | None
    virtiofsd: Path | None
    memory_mib: int
    artifacts: tuple[Path, ...]
    configuration: Finding
    root: Path = Path("/")
    hypervisor: str = "qemu"
    full_kvm: bool = True
