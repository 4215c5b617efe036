"""Configuration files for tests: the shipped one, line for line, with some values changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.tell.template import SHIPPED
from kata_hypervisor.kvm.probe import probe_kvm
from patience import PATIENCE

Value = str | int | float | bool | Path | list[str]

# The emulated machine of a busy host takes its time.
BOOT_BUDGET_MS = int(max(100.0, PATIENCE) * 1000)


def for_image(image: Path) -> dict[str, Value]:
    """The values that fit the shipped file to this host and a guest image."""
    daemon = next((path for path in VIRTIOFSD_PLACES if path.exists()), VIRTIOFSD_PLACES[0])
    return {
        "kernel": image / "vmlinuz",
        "initrd": image / "kata-initrd.img",
        "image": image / "kata-image.erofs",
        "accelerator": "kvm" if probe_kvm().runs_unmodified_guests else "tcg",
        "virtio_fs_daemon": daemon,
        "reconnect_timeout_ms": BOOT_BUDGET_MS,
    }


def render(values: Mapping[str, Value], hypervisor: str = "qemu") -> str:
    """The text of a hypervisor's shipped file with these keys set; each stays on its line.

    A key is the first of its name, or TABLE.KEY.
    """
    text = (SHIPPED / f"configuration-{hypervisor}.toml").read_text(encoding="utf-8")
    for name, value in values.items():
        literal = json.dumps(str(value) if isinstance(value, Path) else value)
        table, _, key = name.rpartition(".")
        begin = text.index(f"\n[{table}]\n") if table else 0
        line = re.compile(rf"(?m)^#?{key} = .*$")
        changed, count = line.subn(lambda _: f"{key} = {literal}", text[begin:], count=1)  # noqa: B023
        assert count == 1, f"the shipped configuration has no key {name}"
        text = text[:begin] + changed
    return text
