"""The record of what was attached to a namespace: written before the first change, so that all of it can be
undone.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import Namespace, Route
from kata_runtime.network.plan import MACVTAP, Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_END = b"\n"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """What may have been attached, and the routes that a macvtap takes from its link meanwhile.

    forwarded: whether loopback may be redirected for port-forwarding.
    """

    attachments: tuple[Attachment, ...]
    routes: tuple[Route, ...] = ()
    forwarded: bool = False

    @classmethod
    def of(cls, namespace: Namespace, attachments: tuple[Attachment, ...], *, forwarded: bool) -> Record:
        """The record for attachments to a namespace as it is before."""
        emptied = {entry.link.index for entry in attachments if entry.model == MACVTAP}
        routes = tuple(route for route in namespace.routes if route.link in emptied)
        return cls(attachments, routes, forwarded)

    def to_json(self) -> dict[str, Any]:
        """An object for JSON, which `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """What `to_json` gave. Raises TypeError or KeyError when it is anything else."""
        return cls(
            attachments=tuple(Attachment.from_json(entry) for entry in value["attachments"]),
            routes=tuple(Route(**route) for route in value["routes"]),
            forwarded=bool(value["forwarded"]),
        )


class RecordFile:
    """A record in an open file. Its methods raise OSError."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def save(self, record: Record) -> None:
        """Write the record, in place of another."""
        self.clear()
        os.pwrite(self._descriptor, json.dumps(record.to_json()).encode() + _END, 0)

    def clear(self) -> None:
        """Forget the record: nothing is attached."""
        os.ftruncate(self._descriptor, 0)

    def load(self) -> Record | None:
        """The record, if there is a whole one: before it was whole, nothing was attached.

        Raises:
            NetworkError: the file holds something else.
        """
        data = b""
        while piece := os.pread(self._descriptor, _PIECE, len(data)):
            data += piece
        if not data.endswith(_END):
            return None
        try:
            return Record.from_json(json.loads(data))
        except (ValueError, TypeError, KeyError) as error:
            raise NetworkError(f"cannot read the record of what was attached: {error}") from None
