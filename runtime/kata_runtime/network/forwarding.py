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

from kata_runtime.network.errors import TAKEN, NetworkError, TakenError
from kata_runtime.network.netlink import ACK, CREATE, EXCL, NetlinkSocket, attribute

TABLE = "kata_port_forward"

# linux/netlink.h, linux/netfilter.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETFILTER = 12
_NFTABLES, _BATCH_BEGIN, _BATCH_END = 10, 0x10, 0x11
_GENERAL = struct.Struct(">BBH")
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NESTED = 0x8000
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _LOCAL_OUT = 1, 2, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _LIST_ELEMENT = 1, 2, 4, 1
_NFPROTO_INET = 1
_OIFNAME, _L4PROTO = 7, 16  # keys of the expression "meta"
_REGISTER, _EQUAL, _ACCEPT = 1, 0, 1
_BEFORE_DNAT = -101
_IFNAMSIZ = 16
_CHAIN = "output"
_BACKLOG = 128
_TRIES = 16
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same
_SOCKADDR_IN, _SOCKADDR_IN6 = 16, 28
_ABSENT = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""What says that there is no table: the last two are a kernel's without nftables, or without netfilter."""

_HINT = "load the kernel modules nft_nat and nft_redir"


def listeners() -> list[int]:
    """Sockets that listen on 127.0.0.1 and ::1, on the same port; only the first where there is no IPv6.

    The sockets that they accept reset their connection when they are closed, unless both sides have ended it:
    that is inherited, because a sealed process cannot set it.

    Raises:
        NetworkError: there is no port, or the namespace's loopback is off.
    """
    for _ in range(_TRIES):
        try:
            first = _listen("127.0.0.1", 0)
        except OSError as error:
            raise NetworkError(
                f"cannot listen on 127.0.0.1 in the pod's namespace: {os.strerror(error.errno or 0)}; its "
                "interface lo has to be on (CNI's plugin loopback)"
            ) from None
        port = first.getsockname()[1]
        try:
            second = _listen("::1", port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                first.close()
                continue
            return [first.detach()]
        return [first.detach(), second.detach()]
    raise NetworkError("cannot listen on one port of 127.0.0.1 and ::1: none is free in the pod's namespace")


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.setblocking(False)
    return made


def port_of(listener: int) -> int:
    """The port of a listener."""
    with socket.socket(fileno=os.dup(listener)) as sock:
        port: int = sock.getsockname()[1]
    return port


def redirect(port: int) -> None:
    """Send TCP connections over loopback to that port. Raises TakenError: somebody has. NetworkError."""
    hook = _number(_HOOK_NUMBER, _LOCAL_OUT) + _number(_HOOK_PRIORITY, _BEFORE_DNAT)
    chain = (
        _text(_CHAIN_TABLE, TABLE)
        + _text(_CHAIN_NAME, _CHAIN)
        + _nested(_CHAIN_HOOK, hook)
        + _number(_CHAIN_POLICY, _ACCEPT)
        + _text(_CHAIN_TYPE, "nat")
    )
    expressions = b"".join(_nested(_LIST_ELEMENT, expression) for expression in _expressions(port))
    rule = _text(_RULE_TABLE, TABLE) + _text(_RULE_CHAIN, _CHAIN) + _nested(_RULE_EXPRESSIONS, expressions)
    try:
        _commit(
            (_NEW_TABLE, CREATE | EXCL, _text(_TABLE_NAME, TABLE)),
            (_NEW_CHAIN, CREATE | EXCL, chain),
            (_NEW_RULE, CREATE, rule),
        )
    except FileExistsError:
        raise TakenError(f"cannot redirect the pod's loopback: {TAKEN}") from None
    except OSError as error:
        raise NetworkError(f"cannot redirect the pod's loopback: {error.strerror}; {_HINT}") from None


def remove() -> None:
    """Take the rule away; it may be gone. Raises NetworkError."""
    try:
        _commit((_DELETE_TABLE, 0, _text(_TABLE_NAME, TABLE)))
    except OSError as error:
        if error.errno not in _ABSENT:
            raise NetworkError(
                f"cannot end the redirection of the pod's loopback: {error.strerror}"
            ) from None


def original_port(connection: socket.socket) -> int:
    """The port to which a connection was made before it was redirected. Raises OSError."""
    if connection.family == socket.AF_INET6:
        address = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6)
    else:
        address = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN)
    return int.from_bytes(address[2:4], "big")


def _expressions(port: int) -> list[bytes]:
    """meta oifname "lo" meta l4proto tcp redirect to :port."""
    register = _number(1, _REGISTER)
    return [
        _expression("meta", register + _number(2, _OIFNAME)),
        _expression("cmp", register + _number(2, _EQUAL) + _value(3, b"lo".ljust(_IFNAMSIZ, b"\0"))),
        _expression("meta", register + _number(2, _L4PROTO)),
        _expression("cmp", register + _number(2, _EQUAL) + _value(3, bytes([socket.IPPROTO_TCP]))),
        _expression("immediate", register + _value(2, struct.pack(">H", port))),
        _expression("redir", register),
    ]


def _expression(name: str, data: bytes) -> bytes:
    return _text(1, name) + _nested(2, data)


def _value(kind: int, raw: bytes) -> bytes:
    return _nested(kind, attribute(1, raw))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, value)


def _commit(*changes: tuple[int, int, bytes]) -> None:
    """Make changes all or none: types without the subsystem's number, flags, attributes. Raises OSError."""
    tables = NetlinkSocket(_NETFILTER)
    try:
        tables.batch(
            [
                (_BATCH_BEGIN, 0, _GENERAL.pack(0, 0, _NFTABLES)),
                *(
                    (_NFTABLES << 8 | kind, ACK | flags, _GENERAL.pack(_NFPROTO_INET, 0, 0) + body)
                    for kind, flags, body in changes
                ),
                (_BATCH_END, 0, _GENERAL.pack(0, 0, _NFTABLES)),
            ]
        )
    finally:
        tables.close()
