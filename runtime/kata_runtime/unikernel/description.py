"""How an image describes the unikernel in it: the container's annotations, or urunc.json in its root.

The keys are urunc's, their values base64 of text. Source: urunc, pkg/unikontainers/config.go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from kata_hypervisor.registry import unikernel_runners
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.unikernel.address import GuestAddress

PREFIX = "com.urunc.unikernel."
FILE = "/urunc.json"
MAX_FILE = 1 << 20

KEYS = (
    *("unikernelType", "unikernelVersion", "binary", "cmdline", "hypervisor"),
    *("initrd", "block", "blkMntPoint", "useDMBlock"),
)

SOLO5 = ("hvt", "spt")
TELLS_IPV6 = ("mirage",)

# Unikraft's first release that reads vfs.fstab and netdev.ip.
# Source: urunc, pkg/unikontainers/unikernels/unikraft.go.
FSTAB_SINCE = (0, 16, 1)


class Unikernel(NamedTuple):
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

    def command_line(
        self,
        arguments: Sequence[str],
        environment: Sequence[str] = (),
        address: GuestAddress | None = None,
    ) -> str:
        """The text that it is started with. environment: of "NAME=value", for kinds that have one.

        Raises:
            UnsupportedError: it has an address, and no kind that says how it is told.
        """
        if address is not None and address.family == AF_INET6 and self.kind not in ("", *TELLS_IPV6):
            raise UnsupportedError(
                f"cannot tell the unikernel its address {address.address}: one of the kind {self.kind} is "
                f"told an address of IPv4 only; of IPv6 is told {', '.join(TELLS_IPV6)}"
            )
        return COMMAND_LINES[self.kind](self, arguments, environment, address)

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


def _plain(
    unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str], address: GuestAddress | None
) -> str:
    if address is not None:
        kinds = ", ".join(kind for kind in COMMAND_LINES if kind)
        raise UnsupportedError(
            f"cannot tell the unikernel its address {address.address}: the {unikernel.origin} has no "
            f"{PREFIX}unikernelType, which says how; set it to one of {kinds}"
        )
    return " ".join(arguments)


def _mirage(
    unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str], address: GuestAddress | None
) -> str:
    """Options of its network before the arguments. One that is told nothing of IPv4 makes itself an address.

    Source of those of IPv6: MirageOS 3.10, lib/mirage/impl/mirage_impl_stack.ml.
    """
    options = []
    if address is not None:
        family = "ipv4" if address.family == AF_INET else "ipv6"
        options += ["--ipv6-only=true"] if family == "ipv6" else []
        options.append(f"--{family}={address.address}/{address.prefix}")
        options += [f"--{family}-gateway={address.gateway}"] if address.gateway else []
    return " ".join([*options, *arguments])


def _rumprun(
    unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str], address: GuestAddress | None
) -> str:
    """Rumprun reads JSON. It takes a gateway in its own network only, which is then made wide enough."""
    line: dict[str, object] = {"cmdline": " ".join(arguments)}
    if address is not None:
        line["net"] = {
            "if": "ukvmif0",
            "cloner": "True",
            "type": "inet",
            "method": "static",
            "addr": address.address,
            "mask": str(address.prefix if address.reaches_gateway else 1),
            **({"gw": address.gateway} if address.gateway else {}),
        }
    line["blk"] = {"source": "etfs", "path": "/dev/ld0a", "fstype": "blk", "mountpoint": "/data"}
    return json.dumps(line, separators=(",", ":"))


def _unikraft(
    unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str], address: GuestAddress | None
) -> str:
    """Its own name, parameters of its libraries, and its arguments behind two hyphens."""
    parts = list(arguments[:1])
    if environment:
        parts.append(f"env.vars=[ {' '.join(environment)} ]")
    current = not unikernel.version or _numbers(unikernel.version) >= FSTAB_SINCE
    if address is not None and current:
        gateway = f":{address.gateway}" if address.gateway else ""
        parts.append(f"netdev.ip={address.address}/{address.prefix}{gateway}")
    elif address is not None:
        parts.append(f"netdev.ipv4_addr={address.address}")
        parts += [f"netdev.ipv4_gw_addr={address.gateway}"] if address.gateway else []
        parts.append(f"netdev.ipv4_subnet_mask={address.mask}")
    if unikernel.initrd:
        parts.append('vfs.fstab=[ "initrd0:/:extract:::" ]' if current else "vfs.rootfs=initrd")
    return " ".join([*parts, "--", *arguments[1:]])


def _linux(
    unikernel: Unikernel, arguments: Sequence[str], environment: Sequence[str], address: GuestAddress | None
) -> str:
    """A Linux kernel whose init is the first argument; one with spaces in it stands in single quotes.

    Source of `ip`: Documentation/admin-guide/nfs/nfsroot.rst. It takes a gateway in its network only; urunc's
    init, urunit, sets another when it is told so.
    """
    parameters = ["panic=-1", "console=ttyS0"]
    if unikernel.block:
        parameters += ["root=/dev/vda", "rw"]
    elif unikernel.initrd:
        parameters += ["root=/dev/ram0", "rw"]
    if address is not None:
        parameters.append(f"ip={address.address}::{address.gateway}:{address.mask}::eth0:off")
        parameters += [] if address.reaches_gateway else ["URUNIT_DEFROUTE=1"]
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


CommandLine = Callable[[Unikernel, Sequence[str], Sequence[str], "GuestAddress | None"], str]

COMMAND_LINES: Mapping[str, CommandLine] = {
    "": _plain,
    "mirage": _mirage,
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
