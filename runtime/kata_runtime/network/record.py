"""The record of what was attached to a namespace: written before the first change, so that all of it can be
undone.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import NUD_PERMANENT, RTPROT_KERNEL, Namespace, Neighbour, Route
from kata_runtime.network.plan import MACVTAP, Attachment, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_END = b"\n"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """What may have been attached, and the routes that a macvtap takes from its link meanwhile.

    forwarded: whether loopback may be redirected for port-forwarding. neighbours: the permanent ones that go
    with the link's MAC address.
    """

    attachments: tuple[Attachment, ...]
    routes: tuple[Route, ...] = ()
    forwarded: bool = False
    neighbours: tuple[Neighbour, ...] = ()

    @classmethod
    def of(cls, namespace: Namespace, attachments: tuple[Attachment, ...], *, forwarded: bool) -> Record:
        """The record for attachments to a namespace as it is before."""
        emptied = {entry.link.index for entry in attachments if entry.model == MACVTAP}
        routes = tuple(route for route in namespace.routes if route.link in emptied)
        neighbours = tuple(
            entry
            for entry in namespace.neighbours
            if entry.link in emptied and entry.mac and entry.state == NUD_PERMANENT
        )
        return cls(attachments, routes, forwarded, neighbours)

    def plan(self, namespace: Namespace) -> Plan:
        """What the guest is to have, by what its namespace holds now.

        Below a macvtap the interface is as it was: the macvtap has taken its addresses and routes. An
        interface that has gone is left out.
        """
        now = {link.index: link for link in namespace.links}
        attachments = [entry for entry in self.attachments if entry.link.index in now]
        attachments = [
            entry if entry.model == MACVTAP else replace(entry, link=now[entry.link.index])
            for entry in attachments
        ]
        emptied = {entry.link.index for entry in attachments if entry.model == MACVTAP}
        others = {entry.link.index for entry in attachments} - emptied
        routes = [route for route in namespace.routes if route.link in others]
        routes += [route for route in self.routes if route.link in emptied]
        return Plan(tuple(attachments), tuple(route for route in routes if route.protocol != RTPROT_KERNEL))

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
            neighbours=tuple(Neighbour(**entry) for entry in value["neighbours"]),
        )


class RecordFile:
    """A record in an open file. Its methods raise OSError."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def save(self, record: Record) -> None:
        """Write the record, in place of another.

        Raises:
            NetworkError: the file system is full: what is not whole would undo nothing.
        """
        self.clear()
        data = json.dumps(record.to_json()).encode() + _END
        if (written := os.pwrite(self._descriptor, data, 0)) != len(data):
            self.clear()
            raise NetworkError(
                f"cannot record what is attached: {written} of {len(data)} bytes fit into the sandbox's file"
            )

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
