"""Port-forwarding's side in the pod's namespace: every connection to loopback comes to one pair of listeners.

containerd enters the namespace and dials localhost there, where nothing listens: the programs are in the
guest. One rule of nftables sends each TCP connection over loopback to the listeners; SO_ORIGINAL_DST of an
accepted socket says which port was meant.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from kata_runtime.network.errors import NetworkError
from kata_runtime.network.library import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TABLE = "kata_port_forward"

_NFPROTO_INET = 1
_OIFNAME, _L4PROTO = 7, 16  # keys of the expression "meta"
_REGISTER, _EQUAL, _ACCEPT = 1, 0, 1
_BEFORE_DNAT = -101
_IFNAMSIZ = 16
_BACKLOG = 128
_TRIES = 16
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same
_SOCKADDR_IN, _SOCKADDR_IN6 = 16, 28
_HINT = "load the kernel modules nft_nat and nft_redir"


def listeners() -> list[int]:
    """Sockets that listen on 127.0.0.1 and ::1, on the same port; only the first where there is no IPv6.

    Raises:
        NetworkError: there is no port.
    """
    for _ in range(_TRIES):
        first = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        port = first.getsockname()[1]
        try:
            second = socket.create_server(("::1", port), family=socket.AF_INET6, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                first.close()
                continue
            return [first.detach()]
        return [first.detach(), second.detach()]
    raise NetworkError("cannot listen on one port of 127.0.0.1 and ::1: none is free in the pod's namespace")


def port_of(listener: int) -> int:
    """The port of a listener."""
    with socket.socket(fileno=os.dup(listener)) as sock:
        port: int = sock.getsockname()[1]
    return port


def redirect(port: int) -> None:
    """Send TCP connections over loopback to that port. Raises NetworkError."""
    from pyroute2.nftables.main import NFTables

    try:
        with NFTables(nfgen_family=_NFPROTO_INET) as tables:
            tables.begin()
            tables.table("add", name=TABLE)
            tables.chain(
                "add",
                table=TABLE,
                name="output",
                type="nat",
                hook="output",
                priority=_BEFORE_DNAT,
                policy=_ACCEPT,
            )
            tables.rule("add", table=TABLE, chain="output", expressions=[_expressions(port)])
            tables.commit()
    except NetlinkError as error:
        raise NetworkError(f"cannot redirect the pod's loopback: {error.args[1]}; {_HINT}") from None


def remove() -> None:
    """Take the rule away; it may be gone. Raises NetworkError."""
    from pyroute2.nftables.main import NFTables

    try:
        with NFTables(nfgen_family=_NFPROTO_INET) as tables:
            tables.table("del", name=TABLE)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise NetworkError(f"cannot end the redirection of the pod's loopback: {error.args[1]}") from None


def original_port(connection: socket.socket) -> int:
    """The port to which a connection was made before it was redirected. Raises OSError."""
    if connection.family == socket.AF_INET6:
        address = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6)
    else:
        address = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN)
    return int.from_bytes(address[2:4], "big")


def _expressions(port: int) -> list[dict[str, Any]]:
    """meta oifname "lo" meta l4proto tcp redirect to :port."""
    return [
        _expression("meta", key=_OIFNAME, dreg=_REGISTER),
        _expression("cmp", sreg=_REGISTER, op=_EQUAL, data=_value(b"lo".ljust(_IFNAMSIZ, b"\0"))),
        _expression("meta", key=_L4PROTO, dreg=_REGISTER),
        _expression("cmp", sreg=_REGISTER, op=_EQUAL, data=_value(bytes([socket.IPPROTO_TCP]))),
        _expression("immediate", dreg=_REGISTER, data=_value(struct.pack(">H", port))),
        _expression("redir", reg_proto_min=_REGISTER),
    ]


def _expression(name: str, **fields: object) -> dict[str, Any]:
    data = [(f"NFTA_{name}_{field}".upper(), value) for field, value in fields.items()]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": data})]}


def _value(raw: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", raw)]}
