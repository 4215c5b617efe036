"""What a saved machine's state file is: one line that names the format and the content's hash, then JSON.

Whoever writes the file could have changed the hash as well: it finds damage, not malice. So everything that
is read is checked for its type and its bounds, by `Fields`, before it is used.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from kata_hypervisor.errors import SnapshotError

FORMAT = 1
"""Rises with each change of what is saved, or of the machine that it is saved from."""
MAGIC = b"kata machine state"
LARGEST = 16 << 20
"""Bytes of a state file; a machine of 32 processors needs a quarter of a MiB."""

Document = dict[str, Any]


def text_of(data: bytes) -> str:
    """Bytes, as they are written in the document."""
    return base64.b64encode(data).decode("ascii")


def encode(document: Document) -> bytes:
    """The whole file."""
    content = json.dumps(document, separators=(",", ":")).encode()
    head = b"%s %d sha256:%s\n" % (MAGIC, FORMAT, sha256(content).hexdigest().encode())
    return head + content


def decode(data: bytes) -> Fields:
    """Understand a whole file.

    Raises:
        SnapshotError: it is of another format, or damaged.
    """
    head, _, content = data.partition(b"\n")
    fields = head.removeprefix(MAGIC).split()
    if not head.startswith(MAGIC) or len(fields) != 2:
        raise SnapshotError("it is no state of a machine")
    if fields[0] != b"%d" % FORMAT:
        raise SnapshotError(
            f"it has format {fields[0][:20].decode(errors='replace')}, this version reads {FORMAT}"
        )
    if fields[1] != b"sha256:" + sha256(content).hexdigest().encode():
        raise SnapshotError("it is damaged: its content does not match its hash")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"it is damaged: {error}") from error
    if not isinstance(document, dict):
        raise SnapshotError("it is damaged: there is no object in it")
    return Fields(document)


class Fields:
    """An object of the document; each method returns the value of a key, and checks it.

    Raises:
        SnapshotError: from every method: the key is missing, or its value is not what it must be.
    """

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        self._values = values
        self._place = place

    def integer(self, key: str, most: int) -> int:
        """A number from 0 to `most`."""
        value = self._get(key)
        if type(value) is not int or not 0 <= value <= most:
            raise self._wrong(key, f"is no number from 0 to {most}")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self._get(key)
        if type(value) is not str:
            raise self._wrong(key, "is no string")
        return value

    def content(self, key: str, size: int) -> bytes:
        """Exactly `size` bytes."""
        value = self.text(key)
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            data = None
        if data is None or len(data) != size:
            raise self._wrong(key, f"is not {size} bytes in base64")
        return data

    def part(self, key: str) -> Fields:
        """An object."""
        return self._part(self._get(key), key)

    def parts(self, key: str, count: int) -> list[Fields]:
        """A list of exactly `count` objects."""
        values = self._get(key)
        if type(values) is not list or len(values) != count:
            raise self._wrong(key, f"is no list of {count}")
        return [self._part(value, f"{key}[{number}]") for number, value in enumerate(values)]

    def integers(self, key: str, lengths: tuple[int, int], most: int) -> list[int]:
        """A list of numbers from 0 to `most`; of a length within the two."""
        values = self._get(key)
        if type(values) is not list or not lengths[0] <= len(values) <= lengths[1]:
            raise self._wrong(key, f"is no list of {lengths[0]} to {lengths[1]}")
        if not all(type(value) is int and 0 <= value <= most for value in values):
            raise self._wrong(key, f"has more than numbers from 0 to {most}")
        return values

    def pairs(self, key: str, most: int, limits: tuple[int, int]) -> list[tuple[int, int]]:
        """A list of at most `most` pairs of numbers from 0 to the two limits."""
        values = self._get(key)
        if type(values) is not list or len(values) > most or not all(_fits(pair, limits) for pair in values):
            raise self._wrong(key, f"is no list of at most {most} pairs of numbers")
        return [(first, second) for first, second in values]

    def _part(self, value: object, place: str) -> Fields:
        if type(value) is not dict:
            raise self._wrong(place, "is no object")
        return Fields(value, f"{self._place}{place}.")

    def _get(self, key: str) -> Any:
        if key not in self._values:
            raise self._wrong(key, "is missing")
        return self._values[key]

    def _wrong(self, key: str, what: str) -> SnapshotError:
        return SnapshotError(f"it is damaged: {self._place}{key} {what}")


def _fits(pair: object, limits: tuple[int, int]) -> bool:
    return (
        type(pair) is list
        and len(pair) == 2
        and all(type(one) is int and 0 <= one <= most for one, most in zip(pair, limits, strict=True))
    )
