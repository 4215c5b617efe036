"""Configurations of the drivers other than QEMU, for a KVM that runs unmodified guests.

KATA_TEST_CLOUD_HYPERVISOR, KATA_TEST_FIRECRACKER and KATA_TEST_JAILER name the programs; the jailer takes a
Firecracker that is linked statically.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shipped_configuration
from node import Node

REST = ("clh", "firecracker", "firecracker-jailed")
ALL = ("dragonball", *REST)

_PROGRAMS: dict[str, dict[str, str]] = {
    "dragonball": {},
    "clh": {"path": "KATA_TEST_CLOUD_HYPERVISOR"},
    "firecracker": {"path": "KATA_TEST_FIRECRACKER"},
    "firecracker-jailed": {"path": "KATA_TEST_FIRECRACKER", "jailer_path": "KATA_TEST_JAILER"},
}
_UNKNOWN = {"firecracker": {"accelerator", "virtio_fs_daemon"}}


def write(subject: str, node: Node, image: Path, **changes: shipped_configuration.Value) -> Path:
    """Write the configuration for a subject, one of ALL, with these keys changed.

    Skips where its programs are not named.
    """
    programs: dict[str, shipped_configuration.Value] = {}
    for key, variable in _PROGRAMS[subject].items():
        if not Path(os.environ.get(variable, "/nonexistent")).exists():
            pytest.skip(f"{variable} names no program")
        programs[key] = Path(os.environ[variable])
    name = subject.partition("-")[0]
    values = shipped_configuration.for_image(image) | programs | changes
    unknown = _UNKNOWN.get(name, {"accelerator"})
    path = node.root / f"{subject}.toml"
    fit = {key: value for key, value in values.items() if key not in unknown}
    path.write_text(shipped_configuration.render(fit, name))
    return path
