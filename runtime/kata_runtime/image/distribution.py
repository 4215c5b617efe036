"""Which packages a guest is made of, by distribution."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.image.errors import PackageError

OS_RELEASE = Path("/etc/os-release")
GUEST = ("crun", "libstdc++6")  # protobuf's compiled part is linked to the latter
PYTHON = ("python3-minimal", "libpython3-stdlib")
# Where the default Python is older than the agent needs.
NEWER_PYTHON = {"jammy": ("python3.11-minimal", "libpython3.11-stdlib")}
BOOT = ("busybox-static",)
VERITY = ("dmsetup",)  # sets up dm-verity, before there is a root file system

# The kernel made for virtual machines, by os-release's ID and the machine's architecture.
KERNELS: Mapping[str, Mapping[str, str]] = {
    "debian": {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"},
    "ubuntu": {"x86_64": "linux-image-virtual", "aarch64": "linux-image-virtual"},
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution that a guest can be made from.

    name: os-release's ID. codename: the release, such as "bookworm". kernel: the kernel's package; what it
    depends on has the version in its name.
    """

    name: str
    codename: str
    kernel: str


def python_packages(suite: str) -> tuple[str, ...]:
    """Return the Python of a release that this project's agent runs on."""
    return NEWER_PYTHON.get(suite, PYTHON)


def detect(os_release: Path = OS_RELEASE, machine: str | None = None) -> Distribution:
    """Return the host's distribution.

    Raises:
        PackageError: it is none that we know, or has no kernel for this architecture.
    """
    fields = _read(os_release)
    return known(fields.get("ID", "linux"), fields.get("VERSION_CODENAME", ""), machine)


def known(name: str, codename: str, machine: str | None = None) -> Distribution:
    """Return a distribution by its name and release.

    Raises:
        PackageError: it is none that we know, or has no kernel for this architecture.
    """
    machine = machine or platform.machine()
    kernel = KERNELS.get(name, {}).get(machine)
    if kernel is None or not codename:
        choices = ", ".join(sorted(KERNELS))
        raise PackageError(
            f"cannot make a guest from {name} {codename or '(no release name)'} on {machine}: "
            f"build on one of {choices} and copy the image, or give one's --sources"
        )
    return Distribution(name, codename, kernel)


def _read(os_release: Path) -> dict[str, str]:
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
