"""The shipped files, written from the models: every key with its sentence, unit and default.

`python -m kata_configuration.tell.template NAME` prints the file of one hypervisor; a test compares them.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from kata_configuration.diagnostics import KeyPath, key_name
from kata_configuration.models import TABLES, Table
from kata_configuration.models.base import About, inner_table
from kata_configuration.parse.toml_text import value_text
from kata_configuration.sandbox_option import DENY_ALL
from kata_configuration.tell import facts

# Where they are: in an installed package in it, in a checkout beside it.
_PACKAGED = Path(__file__).parents[1] / "shipped"
SHIPPED = _PACKAGED if any(_PACKAGED.glob("*.toml")) else Path(__file__).parents[2]

HEADING = """\
Configuration of the Kata runtime, for virtual machines of {title}.

A key that is commented out shows its default. A key that is not known is an error: see what
"kata-ctl config lint" says of this file after a change.
"""

GUEST = {
    "kernel": "/var/lib/kata-containers/image/vmlinuz",
    "initrd": "/var/lib/kata-containers/image/kata-initrd.img",
    "image": "/var/lib/kata-containers/image/kata-image.erofs",
}

# What a hypervisor's file sets. All else stands there as a comment, with its default.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "qemu": {
        "path": "/usr/bin/qemu-system-x86_64",
        **GUEST,
        "seccompsandbox": DENY_ALL,
        "virtio_fs_daemon": "/usr/lib/qemu/virtiofsd",
    },
    "clh": {
        "path": "/usr/bin/cloud-hypervisor",
        **GUEST,
        "disable_seccomp": False,
        "virtio_fs_daemon": "/usr/lib/qemu/virtiofsd",
    },
    "firecracker": {"path": "/usr/bin/firecracker", **GUEST, "disable_seccomp": False},
    "dragonball": {**GUEST, "disable_seccomp": False, "virtio_fs_daemon": "/usr/lib/qemu/virtiofsd"},
    "solo5-hvt": {"path": "/usr/bin/solo5-hvt", "disable_seccomp": False, "honor_unconfined": False},
    "solo5-spt": {"path": "/usr/bin/solo5-spt"},
}


def shipped(name: str) -> str:
    """Write the file that is shipped for a hypervisor."""
    heading = HEADING.format(title=facts.title(name))
    tables: Mapping[KeyPath, Mapping[str, Any]] = {
        ("hypervisor", name): SETTINGS[name],
        ("agent", "kata"): {},
        ("runtime",): {"hypervisor_name": name, "agent_name": "kata"},
    }
    return _comment(heading) + "\n" + render(tables)


def render(tables: Mapping[KeyPath, Mapping[str, Any]]) -> str:
    """Write tables with the given settings, and explain every key."""
    blocks: list[str] = []
    for path, values in tables.items():
        model = TABLES[tuple(str(part) for part in path)]
        blocks.append(f"{_comment(facts.sentence(model))}[{key_name(path)}]\n")
        blocks += _keys(model, values)
        for name, field in model.model_fields.items():
            if inner := inner_table(field):
                blocks.append(f"{_comment(About.of(field).sentence)}#[{key_name((*path, name))}]\n")
                blocks += _keys(inner, {})
    return "\n".join(blocks)


def _keys(model: type[Table], values: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if inner_table(field) is None:
            shown, mark = (value_text(values[name]), "") if name in values else (facts.example(field), "#")
            yield f"{explained(field)}{mark}{name} = {shown}\n"


def explained(field: FieldInfo) -> str:
    """Write a key's sentence, unit, choices and range as a comment."""
    return _comment(_sentence(field))


def _sentence(field: FieldInfo) -> str:
    """Return a key's sentence, followed by its unit, its choices and its range."""
    notes = [f"in {facts.unit(field)}"] if facts.unit(field) else []
    notes += filter(
        None, [" | ".join(value_text(choice) for choice in facts.choices(field)), facts.span(field)]
    )
    return About.of(field).sentence + (f" ({', '.join(notes)})" if notes else "")


def _comment(text: str) -> str:
    paragraphs = text.strip().split("\n\n")
    wrapped = ["\n".join(f"# {line}" for line in textwrap.wrap(part, 98)) for part in paragraphs]
    return "\n#\n".join(wrapped) + "\n"


if __name__ == "__main__":
    print(shipped(*sys.argv[1:]), end="")
