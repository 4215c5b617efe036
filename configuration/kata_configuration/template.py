"""The shipped file, written from the models: every key with its sentence, unit and default.

`python -m kata_configuration.template` prints it; a test holds the file in shipped/ to it.
"""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from kata_configuration.diagnostics import KeyPath, key_name
from kata_configuration.models import TABLES, Table
from kata_configuration.models.base import Unit
from kata_configuration.sandbox_option import DENY_ALL

SHIPPED = Path(__file__).parent / "shipped"

HEADING = """\
Configuration of the Kata runtime, for virtual machines of QEMU.

A key that is commented out shows its default. A key that is not known is an error: see what
"kata-ctl config lint" says of this file after a change.
"""

# What the shipped file sets, by table. All else stands there as a comment, with its default.
QEMU_SETTINGS: Mapping[KeyPath, Mapping[str, Any]] = {
    ("hypervisor", "qemu"): {
        "path": "/usr/bin/qemu-system-x86_64",
        "kernel": "/usr/share/kata-containers/vmlinuz",
        "initrd": "/usr/share/kata-containers/kata-initrd.img",
        "image": "/usr/share/kata-containers/kata-image.erofs",
        "seccompsandbox": DENY_ALL,
        "virtio_fs_daemon": "/usr/lib/qemu/virtiofsd",
    },
    ("agent", "kata"): {},
    ("runtime",): {"hypervisor_name": "qemu", "agent_name": "kata"},
}


def render(settings: Mapping[KeyPath, Mapping[str, Any]]) -> str:
    """Write a configuration file that has the given tables and settings, and explains every key."""
    blocks = [_comment(HEADING)]
    for path, values in settings.items():
        model = TABLES[tuple(str(part) for part in path)]
        blocks.append(f"{_comment(model.__doc__ or '')}[{key_name(path)}]\n")
        blocks += _keys(model, values)
    return "\n".join(blocks)


def _keys(model: type[Table], values: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        shown = values.get(name, field.get_default() if field.get_default() is not None else _example(field))
        mark = "" if name in values else "#"
        yield f"{_comment(_sentence(field))}{mark}{name} = {_toml(shown)}\n"


def _example(field: FieldInfo) -> Any:
    return field.examples[0] if field.examples else ""


def _sentence(field: FieldInfo) -> str:
    """Return a key's sentence, followed by its unit, its choices and its range."""
    facts = [f"in {item.symbol}" for item in field.metadata if isinstance(item, Unit)]
    if choices := [choice for choice in typing.get_args(field.annotation) if isinstance(choice, str)]:
        facts.append(" | ".join(json.dumps(choice) for choice in choices))
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        facts.append(f"{low} to {high}")
    return f"{field.description}" + (f" ({', '.join(facts)})" if facts else "")


def _comment(text: str) -> str:
    paragraphs = text.strip().split("\n\n")
    wrapped = ["\n".join(f"# {line}" for line in textwrap.wrap(part, 98)) for part in paragraphs]
    return "\n#\n".join(wrapped) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # A JSON string of printable characters is a TOML string.
    return json.dumps(str(value), ensure_ascii=False)


if __name__ == "__main__":
    print(render(QEMU_SETTINGS), end="")
