"""What an image says of the unikernel in it: the container's annotations, or urunc.json in its root.

The keys are urunc's, their values base64 of text. Source: urunc, pkg/unikontainers/config.go.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kata_runtime.errors import InvalidRequestError, UnsupportedError

PREFIX = "com.urunc.unikernel."
FILE = "/urunc.json"
MAX_FILE = 1 << 20

KEYS = (
    *("unikernelType", "unikernelVersion", "binary", "cmdline", "hypervisor"),
    *("initrd", "block", "blkMntPoint", "useDMBlock"),
)

RUNNERS: Mapping[str, tuple[str, ...]] = {"hvt": ("dragonball", "solo5-hvt"), "spt": ("solo5-spt",)}
"""Which hypervisor tables run what urunc calls a hypervisor."""


@dataclass(frozen=True, slots=True)
class Unikernel:
    """A unikernel as its image describes it.

    origin: what was read, "annotation" or "urunc.json". binary, block: paths in the image; block may be
    empty. hypervisor: of RUNNERS. kind: such as "mirage", for the form of its command line. ignored: keys
    without a meaning here.
    """

    origin: str
    binary: str
    hypervisor: str
    kind: str = ""
    block: str = ""
    ignored: tuple[str, ...] = ()

    def command_line(self, arguments: Sequence[str]) -> str:
        """The text that it is started with."""
        return COMMAND_LINES[self.kind](" ".join(arguments))

    def check_runner(self, name: str) -> None:
        """See that the configured hypervisor runs it. Raises UnsupportedError."""
        able = RUNNERS[self.hypervisor]
        if name not in able:
            tables = " or ".join(f"[hypervisor.{one}]" for one in able)
            raise UnsupportedError(
                f'the {self.origin} {PREFIX}hypervisor says "{self.hypervisor}", which {tables} runs: '
                f"the configuration in force has [hypervisor.{name}]"
            )


def _rumprun(line: str) -> str:
    """Rumprun reads JSON. Source: urunc, pkg/unikontainers/unikernels/rumprun.go."""
    block = {"source": "etfs", "path": "/dev/ld0a", "fstype": "blk", "mountpoint": "/data"}
    return json.dumps({"cmdline": line, "blk": block}, separators=(",", ":"))


COMMAND_LINES: Mapping[str, Callable[[str], str]] = {"": str, "mirage": str, "rumprun": _rumprun}


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
                f"the {origin} {PREFIX}{key} is missing: it is needed to run a unikernel"
            )
    unikernel = Unikernel(
        origin,
        known["binary"],
        known["hypervisor"],
        known.get("unikernelType", ""),
        known.get("block", ""),
        tuple(sorted(key for key in encoded if key.removeprefix(PREFIX) not in KEYS)),
    )
    _check_choice(unikernel.hypervisor, RUNNERS, origin, "hypervisor")
    _check_choice(unikernel.kind, COMMAND_LINES, origin, "unikernelType")
    if known.get("initrd"):
        raise UnsupportedError(
            f"the {origin} {PREFIX}initrd asks for an initrd, which solo5's unikernels have not"
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
        raise UnsupportedError(f"the {origin} {PREFIX}{key} says {value[:100]!r}; supported: {supported}")
