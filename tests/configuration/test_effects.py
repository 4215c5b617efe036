"""Every honoured key is read where its declaration says that it takes effect.

That a value makes a difference there is for the tests of that room; this one finds a key that nobody reads.
"""

from __future__ import annotations

import ast
import functools
import typing
from pathlib import Path

import pytest

from kata_configuration.models import TABLES
from kata_configuration.models.base import About, Effect, inner_table

ROOT = Path(__file__).parents[2]
HYPERVISOR = ROOT / "hypervisor/kata_hypervisor"
RUNTIME = ROOT / "runtime/kata_runtime"
LOADING = (ROOT / "configuration/kata_configuration",)
SPEC = (RUNTIME / "pod/machine_spec.py", RUNTIME / "unikernel")

# The modules of each driver. Those beside the drivers' folders serve several of them.
SHARED = (HYPERVISOR / "rest_machine.py", HYPERVISOR / "rate_limiter.py")
DRIVERS = {
    "qemu": (HYPERVISOR / "qemu", HYPERVISOR / "registry.py"),
    "clh": (HYPERVISOR / "cloud_hypervisor", *SHARED),
    "firecracker": (HYPERVISOR / "firecracker", *SHARED),
    "dragonball": (HYPERVISOR / "dragonball", HYPERVISOR / "registry.py"),
    "solo5-hvt": (HYPERVISOR / "solo5",),
    "solo5-spt": (HYPERVISOR / "solo5",),
}

# Where a key is read, by where it takes effect; a driver's modules come to those of its machine.
PLACES = {
    Effect.LOADING: LOADING,
    Effect.SIZE: (RUNTIME / "resource/sizing.py", *SPEC),
    Effect.MACHINE: (*SPEC, RUNTIME / "pod/linux_boot.py"),
    Effect.FILTER: (RUNTIME / "pod/sealing.py",),
    Effect.KERNEL_LINE: SPEC,
    Effect.VIRTIOFSD: (HYPERVISOR / "virtiofsd.py",),
    Effect.AGENT: (RUNTIME / "pod",),
    Effect.SHIM: (RUNTIME / "pod", RUNTIME / "shim"),
}
OF_DRIVERS = {Effect.SIZE, Effect.MACHINE, Effect.FILTER}

# A key that is read by way of a property of its table.
PROPERTIES = {
    "network_queues": "tap_queues",
    "seccompsandbox": "confined",
    "disable_seccomp": "confined",
    "kernel_params": "kernel_parameters",
    "accelerator": "needs_kvm",
    "shared_fs": "shares_files",
    "enable_template": "template_path",
}

# Keys with one value, which states what is so: there is nothing to read.
STATEMENTS = {
    ("hypervisor", "clh"): {"block_device_driver"},
    ("hypervisor", "firecracker"): {"block_device_driver"},
    ("hypervisor", "dragonball"): {"hugepage_type"},
    ("runtime",): {"name", "sandbox_cgroup_only"},
}


@functools.cache
def names_read(place: Path) -> frozenset[str]:
    """The attributes that the modules at a place read, also by name."""
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    files = [file for file in files if "models" not in file.parts]
    assert files, place
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


def is_read(path: tuple[str, ...], key: str, effect: Effect) -> bool:
    places = list(PLACES[effect])
    if path[0] == "hypervisor" and effect in OF_DRIVERS:
        places += DRIVERS[path[1]]
    read = frozenset[str]().union(*map(names_read, places))
    return key in read or PROPERTIES.get(key, key) in read


def honoured() -> list[tuple[tuple[str, ...], str, Effect]]:
    found = []
    for path, model in TABLES.items():
        for key, field in model.model_fields.items():
            inner = inner_table(field)
            for name, item in inner.model_fields.items() if inner else [(key, field)]:
                effect = About.of(item).takes_effect_in
                assert effect is not None, key
                found.append((path, name, effect))
    return found


@pytest.mark.parametrize(
    ("path", "key", "effect"), honoured(), ids=[f"{'.'.join(path)}.{key}" for path, key, _ in honoured()]
)
def test_a_key_is_read_where_it_takes_effect(path: tuple[str, ...], key: str, effect: Effect) -> None:
    if key.startswith("valid_"):
        return  # by way of the declaration of the key that it limits
    if key in STATEMENTS.get(path, ()):
        assert len(typing.get_args(TABLES[path].model_fields[key].annotation)) == 1
        return
    assert is_read(path, key, effect)


def test_a_key_that_nobody_reads_is_found() -> None:
    assert not is_read(("hypervisor", "qemu"), "queue_size_of_nobody", Effect.MACHINE)
    assert not is_read(("hypervisor", "qemu"), "enable_iommu", Effect.MACHINE)
