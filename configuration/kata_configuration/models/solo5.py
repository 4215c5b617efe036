"""The tables [hypervisor.solo5-hvt] and [hypervisor.solo5-spt]: unikernels, which bring their own kernel."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from kata_configuration.models import machine_keys as machine
from kata_configuration.models.base import HypervisorTable


class Solo5Hvt(HypervisorTable):
    """How solo5-hvt runs unikernels with KVM, and is confined."""

    title: ClassVar[str] = "solo5-hvt"

    path: machine.ProgramPath = Path("/usr/bin/solo5-hvt")
    valid_hypervisor_paths: machine.ValidHypervisorPaths = ()
    default_memory: machine.DefaultMemory = Field(512, ge=1, le=1024 * 1024)
    disable_seccomp: machine.DisableSeccomp = False
    honor_unconfined: machine.HonorUnconfined = False
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @property
    def confined(self) -> bool:
        """Whether disable_seccomp leaves the filter on."""
        return not self.disable_seccomp

    @property
    def program(self) -> Path | None:
        """See HypervisorTable."""
        return self.path

    @property
    def honors_unconfined(self) -> bool | None:
        """See HypervisorTable."""
        return self.honor_unconfined

    @property
    def needs_full_kvm(self) -> bool:
        """Never: its unikernels are made for it, and run on a KVM that only emulates."""
        return False


class Solo5Spt(HypervisorTable):
    """How solo5-spt runs unikernels without KVM, under the seccomp filter that it always installs."""

    title: ClassVar[str] = "solo5-spt"

    path: machine.ProgramPath = Path("/usr/bin/solo5-spt")
    valid_hypervisor_paths: machine.ValidHypervisorPaths = ()
    default_memory: machine.DefaultMemory = Field(512, ge=1, le=1024 * 1024)
    enable_annotations: machine.EnableAnnotations = ()
    enable_debug: machine.EnableDebug = False
    log_level: machine.HypervisorLogLevel = "info"

    @property
    def program(self) -> Path | None:
        """See HypervisorTable."""
        return self.path

    @property
    def confined(self) -> bool:
        """Always: it has a filter that nothing turns off."""
        return True

    @property
    def needs_kvm(self) -> bool:
        """Never: the unikernel is a process whose system calls are the interface."""
        return False
