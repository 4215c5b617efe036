"""What the sealed runtime may ask of a VMM: a driver's declaration, enforced by the broker.

A schema is a value that must be equal, or a tuple of alternatives; `bool`; a `range` of integers; a dict, in
which a key that ends in "?" may be missing; or one of the kinds below. Text that is no constant is therefore
a name, or the path of something that the broker has chosen: no path comes from the runtime. What the
configuration limits is what was told before the seal.

Standard library only, and little of it: the broker reads this before anything else is loaded.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Schema = Any


MAX_NAME = 64


class Kind:
    """A kind of text. name: for messages."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Saved:
    """A path in the directory that the machine is saved in. form: what it is, "{}" being the directory."""

    __slots__ = ("form",)

    def __init__(self, form: str) -> None:
        self.form = form


NAME = Kind("a name")
"""What `is_name` takes."""
SET = Kind("a set of descriptors that QEMU was given")
DISK = Kind("a disk that the broker shows to the VMM")
LIMITS = Kind("the limits of each disk")
"""Those that were told when the interface was handed over; missing where there are none, and else there."""


def is_name(text: str) -> bool:
    """Whether a text is a name: at most 64 letters, digits, hyphens and underscores."""
    plain = text.replace("-", "x").replace("_", "x")
    return len(text) <= MAX_NAME and plain.isascii() and plain.isalnum()


class Request:
    """A request that may be sent. path: with the interface's base. body: its schema, None for no body."""

    __slots__ = ("body", "method", "path")

    def __init__(self, method: str, path: str, body: Schema = None) -> None:
        self.method = method
        self.path = path
        self.body = body
