"""How an image describes the unikernel in it: the container's annotations, or urunc.json in its root.

The keys are urunc's, their values base64 of text. Source: urunc, pkg/unikontainers/config.go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kata_hypervisor.registry import unikernel_runners
from kata_runtime.errors import InvalidRequestError, UnsupportedError

PREFIX = "com.urunc.unikernel."
FILE = "/urunc.json"
MAX_FILE = 1 << 20

KEYS = (
    *("unikernelType", "unikernelVersion", "binary", "cmdline", "hypervisor"),
    *("initrd", "block", "blkMntPoint", "useDMBlock"),
)

SOLO5 = ("hvt", "spt")

# Unikraft's first release that reads vfs.fstab. Source: urunc, pkg/unikontainers/unikernels/unikraft.go.
FSTAB_SINCE = (0, 16, 1)


@dataclass(frozen=True, slots=True)
class Unikernel:
    """A unikernel as its image describes it.

    origin: what was read, "annotation" or "urunc.json". binary, block, initrd: paths in the image; the latter
    may be empty. hypervisor: one of `registry.unikernel_runners`. kind, version: such as "unikraft",
    "0.17.0", for the form of its command line. ignored: keys without a meaning here.
    """

    origin: str
    binary: str
    hypervisor: str
    kind: str = ""
    block: str = ""
    initrd: str = ""
    version: str = ""
    ignored: tuple[str, ...] = ()

    def command_line(self, arguments: Sequence[str], environment: Sequence[str] = ()) -> str:
        """The text that it is started with. environment: of "NAME=value", for kinds that have one."""
        return COMMAND_LINES[self.kind](self, arguments, environment)

    def check_runner(self, name: str) -> None:
        """See that the configured hypervisor runs it. Raises UnsupportedError."""
        able = unikernel_runners()[self.hypervisor]
        if name not in able:
            tables = " or ".join(f"[hypervisor.{one}]" for one in able)
            raise UnsupportedError(
                f'the {self.origin} {PREFIX}hypervisor asks for "{self.hypervisor}", which {tables} runs; '
                f"the configuration in force has [hypervisor.{name}]"
            )


# Command lines by the kind of unikernel. Sources: urunc, pkg/unikontainers/unikernels/KIND.go.


def _plain(unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str]) -> str:
    return " ".join(arguments)


def _rumprun(unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str]) -> str:
    """Rumprun reads JSON."""
    block = {"source": "etfs", "path": "/dev/ld0a", "fstype": "blk", "mountpoint": "/data"}
    return json.dumps({"cmdline": " ".join(arguments), "blk": block}, separators=(",", ":"))


def _unikraft(unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str]) -> str:
    """Its own name, parameters of its libraries, and its arguments behind two hyphens."""
    parts = list(arguments[:1])
    if environment:
        parts.append(f"env.vars=[ {' '.join(environment)} ]")
    if unikernel.initrd:
        current = not unikernel.version or _numbers(unikernel.version) >= FSTAB_SINCE
        parts.append('vfs.fstab=[ "initrd0:/:extract:::" ]' if current else "vfs.rootfs=initrd")
    return " ".join([*parts, "--", *arguments[1:]])


def _linux(unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str]) -> str:
    """A Linux kernel whose init is the first argument; one with spaces in it stands in single quotes."""
    parameters = ["panic=-1", "console=ttyS0"]
    if unikernel.block:
        parameters += ["root=/dev/vda", "rw"]
    elif unikernel.initrd:
        parameters += ["root=/dev/ram0", "rw"]
    parameters += [_in_double_quotes(variable) for variable in environment]
    init = "init" if unikernel.block or not unikernel.initrd else "rdinit"
    quoted = [f"'{argument}'" if " " in argument else argument for argument in arguments]
    return " ".join([*parameters, f"{init}={quoted[0]}", "--", *quoted[1:]])


def _in_double_quotes(variable: str) -> str:
    """A value with spaces as Linux reads it."""
    name, _, value = variable.partition("=")
    return f'{name}="{value}"' if " " in value else variable


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:3])


COMMAND_LINES: Mapping[str, Callable[[Unikernel, Sequence[str], Sequence[str]], str]] = {
    "": _plain,
    "mirage": _plain,
    "rumprun": _rumprun,
    "unikraft": _unikraft,
    "linux": _linux,
}


def from_annotations(annotations: Mapping[str, str]) -> Unikernel | None:
    """The unikernel that a container's annotations name, or None when they name none.

    Raises:
        InvalidRequestError: an annotation is wrong. UnsupportedError: it is of a kind that is not known.
    """
    found = {key: value for key, value in annotations.items() if key.startswith(PREFIX) and value}
    return _read(found, "annotation") if found else None


def from_file(raw: bytes) -> Unikernel:
    """The unikernel that the content of urunc.json names. Raises as `from_annotations` does."""
    if len(raw) > MAX_FILE:
        raise InvalidRequestError(f"urunc.json of the image is larger than {MAX_FILE >> 20} MiB")
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"urunc.json of the image is not JSON: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise InvalidRequestError("urunc.json of the image must be an object of strings")
    return _read({key: value for key, value in tree.items() if value}, "urunc.json")


def _read(encoded: Mapping[str, str], origin: str) -> Unikernel:
    known = {key: _decode(encoded[PREFIX + key], origin, key) for key in KEYS if PREFIX + key in encoded}
    for key in ("binary", "hypervisor"):
        if not known.get(key):
            raise InvalidRequestError(
                f"the {origin} {PREFIX}{key} is missing: a unikernel cannot run without it"
            )
    unikernel = Unikernel(
        origin,
        known["binary"],
        known["hypervisor"],
        known.get("unikernelType", ""),
        known.get("block", ""),
        known.get("initrd", ""),
        known.get("unikernelVersion", ""),
        tuple(sorted(key for key in encoded if key.removeprefix(PREFIX) not in KEYS)),
    )
    _check_choice(unikernel.hypervisor, unikernel_runners(), origin, "hypervisor")
    _check_choice(unikernel.kind, COMMAND_LINES, origin, "unikernelType")
    if unikernel.initrd and unikernel.hypervisor in SOLO5:
        raise UnsupportedError(
            f"the {origin} {PREFIX}initrd names an initrd, which Solo5 unikernels do not support: remove it"
        )
    return unikernel


def _decode(value: str, origin: str, key: str) -> str:
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise InvalidRequestError(
            f"the {origin} {PREFIX}{key} is {value[:100]!r}: it must be the base64 of text"
        ) from None
    if "\0" in text:
        raise InvalidRequestError(f"the {origin} {PREFIX}{key} must not contain null characters")
    return text


def _check_choice(value: str, choices: Mapping[str, object], origin: str, key: str) -> None:
    if value not in choices:
        supported = ", ".join(choice for choice in choices if choice)
        raise UnsupportedError(
            f"the {origin} {PREFIX}{key} is {value[:100]!r}: it must be one of {supported}"
        )
