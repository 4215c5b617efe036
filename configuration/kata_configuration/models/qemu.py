"""The table [hypervisor.qemu]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from kata_configuration.models.base import CommaList, HostPath, Mebibytes, Strings, Table, Text, malformed
from kata_configuration.sandbox_option import DENY_ALL, find_faults, is_on


class QemuHypervisor(Table):
    """How QEMU is started and confined."""

    aliases: ClassVar[Mapping[str, str]] = {"seccomp_sandbox": "seccompsandbox"}

    path: HostPath = Field(Path("/usr/bin/qemu-system-x86_64"), description="The QEMU program.")
    kernel: HostPath = Field(
        description="The guest's kernel, a bzImage or vmlinuz file.",
        examples=["/usr/share/kata-containers/vmlinuz"],
    )
    initrd: HostPath | None = Field(
        None,
        description="The guest's early userspace; at least one of initrd and image is needed.",
        examples=["/usr/share/kata-containers/kata-initrd.img"],
    )
    image: HostPath | None = Field(
        None,
        description="The guest's root file system; an initrd beside it loads the drivers and mounts it.",
        examples=["/usr/share/kata-containers/kata-image.erofs"],
    )
    rootfs_type: Literal["erofs", "ext4", "xfs"] = Field("erofs", description="The image's file system.")
    kernel_params: Text = Field(
        "", description="Words added at the end of the kernel's command line; double quotes keep spaces."
    )
    machine_type: Literal["q35", "pc"] = Field("q35", description="The machine that QEMU emulates.")
    machine_accelerators: CommaList = Field(
        "", description="Comma-separated properties appended to QEMU's -machine option."
    )
    cpu_features: CommaList = Field(
        "", description='Comma-separated properties appended to QEMU\'s -cpu option, such as "pmu=off".'
    )
    accelerator: Literal["kvm", "tcg"] = Field(
        "kvm",
        description="What runs the guest's instructions: the kernel's KVM, or tcg, QEMU's slow emulation; "
        "one is never replaced by the other silently.",
    )
    default_vcpus: int = Field(
        1, ge=1, le=255, description="Virtual CPUs of a virtual machine when it starts."
    )
    default_maxvcpus: int = Field(
        0,
        ge=0,
        le=255,
        description="The most virtual CPUs that a virtual machine may have; 0 is the host's number.",
    )
    default_memory: Mebibytes = Field(
        512, ge=128, le=16 * 1024 * 1024, description="Memory of a virtual machine when it starts."
    )
    overhead_vcpus: float = Field(
        0.0, ge=0, le=255, description="CPUs added to a container's limits when the machine is sized by them."
    )
    overhead_memory: Mebibytes = Field(
        0,
        ge=0,
        le=16 * 1024 * 1024,
        description="Memory added to a container's limits when the machine is sized by them.",
    )
    seccompsandbox: Text = Field(
        DENY_ALL,
        description="QEMU's own seccomp filter, the value of its -sandbox option: every thread of QEMU is "
        'proved to be under it before the guest runs; "off" runs QEMU unconfined.',
    )
    shared_fs: Literal["virtio-fs", "none"] = Field(
        "virtio-fs", description="How the guest sees the containers' files on the host."
    )
    virtio_fs_daemon: HostPath = Field(
        Path("/usr/lib/qemu/virtiofsd"), description="The virtiofsd program, needed for virtio-fs."
    )
    virtio_fs_extra_args: Strings = Field((), description="Arguments added to virtiofsd's command line.")
    virtio_fs_cache: Literal["never", "auto", "always"] = Field(
        "auto", description="How long the guest may trust what it has read from the host's files."
    )
    entropy_source: HostPath = Field(
        Path("/dev/urandom"), description="The host's source of the guest's random numbers."
    )
    enable_debug: bool = Field(
        False, description="Log what the guest's kernel prints to its console, and QEMU's own messages."
    )

    @field_validator("seccompsandbox")
    @classmethod
    def _check_sandbox(cls, value: str) -> str:
        faults = find_faults(value)
        if faults:
            raise malformed(faults[0].message, faults[0].hint, sandbox_faults=faults)
        return value

    @field_validator("kernel_params")
    @classmethod
    def _check_quotes(cls, value: str) -> str:
        if value.count('"') % 2:
            raise malformed("has a double quote without its pair", "close it")
        return value

    @property
    def confined(self) -> bool:
        """Whether the configuration asks QEMU for a seccomp filter."""
        return is_on(self.seccompsandbox)

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """kernel_params as words; a space between double quotes does not separate."""
        words = re.findall(r'(?:[^ "]|"[^"]*")+', self.kernel_params)
        return tuple(words)
