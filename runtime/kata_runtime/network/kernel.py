"""Netlink in one network namespace: what it holds, and the few changes that attaching makes. Thin.

Only the network program imports this module: see `library` for what pyroute2 costs.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from socket import AF_INET, AF_INET6

from kata_runtime.network import links, messages, traffic
from kata_runtime.network.errors import TAKEN, NetworkError, TakenError
from kata_runtime.network.library import fibmsg, ifaddrmsg, ndmsg, rtmsg
from kata_runtime.network.links import DELETE_LINK, GET_LINK, NEW_LINK, SET_LINK, LinkMessage
from kata_runtime.network.model import TC_H_INGRESS, Address, Namespace, Neighbour, Route, family_of
from kata_runtime.network.netlink import CREATE, EXCL, REPLACE, NetlinkSocket
from kata_runtime.network.traffic import TrafficMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

# linux/rtnetlink.h
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _GET_ROUTE, _NEW_NEIGHBOUR, _GET_NEIGHBOUR, _GET_RULE = 24, 26, 28, 30, 34
_CLONED = 0x200  # RTM_F_CLONED: what the kernel has learnt of a route, and no route
_UP = 0x1
_SMALL_TABLES = 255

_JUDGE_PRIORITY, _REDIRECT_PRIORITY = 1, 2
_JUDGE = "kata_spoofing"
_SETTLING = (0.01, 0.02, 0.03, 0.04)
"""Seconds before each further try, while the kernel still takes an earlier qdisc of the link down."""


class Kernel:
    """Asks the kernel about the network namespace in which it was made; a context manager.

    Every method raises NetworkError where the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self) -> Namespace:
        """All that the namespace holds."""
        dump = self._socket.dump
        with _attempting("read the network namespace"):
            return messages.namespace(
                links=dump(GET_LINK, LinkMessage()),
                addresses=dump(_GET_ADDRESS, ifaddrmsg()),
                routes=[
                    route
                    for route in dump(_GET_ROUTE, rtmsg())
                    if route["family"] in (AF_INET, AF_INET6) and not route["flags"] & _CLONED
                ],
                neighbours=dump(_GET_NEIGHBOUR, ndmsg()),
                qdiscs=dump(traffic.GET_QDISC, TrafficMessage()),
                rules=dump(_GET_RULE, fibmsg()),
            )

    def index_of(self, name: str) -> int:
        """The index of the interface of that name, or 0."""
        with _attempting(f"look for the interface {name}", errno.ENODEV):
            found = self._socket.get(GET_LINK, LinkMessage(), attrs=[["IFLA_IFNAME", name]])
            return int(found["index"]) if found is not None else 0
        return 0

    # -- links -----------------------------------------------------------------------------------------------

    def set_mtu(self, index: int, name: str, mtu: int) -> None:
        """Set an interface's MTU."""
        with _attempting(f"set the MTU of {name} to {mtu}"):
            self._set_link(index, ["IFLA_MTU", mtu])

    def set_mac(self, index: int, name: str, mac: str) -> None:
        """Set an interface's MAC address."""
        with _attempting(f"set the MAC address of {name} to {mac}"):
            self._set_link(index, ["IFLA_ADDRESS", mac])

    def set_queue_length(self, index: int, name: str, length: int) -> None:
        """Set how many frames an interface's transmit queue holds."""
        with _attempting(f"set the transmit queue length of {name} to {length}"):
            self._set_link(index, ["IFLA_TXQLEN", length])

    def _set_link(self, index: int, attribute: list[Any]) -> None:
        self._socket.change(SET_LINK, 0, LinkMessage(), index=index, attrs=[attribute])

    def set_up(self, index: int, name: str) -> None:
        """Switch an interface on."""
        with _attempting(f"switch {name} on"):
            self._socket.change(SET_LINK, 0, LinkMessage(), index=index, flags=_UP, change=_UP)

    def add_macvtap(self, name: str, parent: int, index: int, mtu: int) -> bool:
        """Make a macvtap above an interface; whether the index was free.

        Raises TakenError: the name is not.
        """
        wanted = [
            ["IFLA_IFNAME", name],
            ["IFLA_MTU", mtu],
            ["IFLA_LINK", parent],
            ["IFLA_LINKINFO", links.macvtap()],
        ]
        with _attempting(f"make the macvtap {name}"):
            try:
                self._socket.change(NEW_LINK, CREATE | EXCL, LinkMessage(), index=index, attrs=wanted)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EBUSY):
                    raise
                if self.index_of(name):
                    raise TakenError(f"cannot make the macvtap {name}: {TAKEN}") from None
                return False
        return True

    def delete_link(self, index: int, name: str) -> None:
        """Remove an interface; it may be gone."""
        with _attempting(f"remove {name}", errno.ENODEV):
            self._socket.change(DELETE_LINK, 0, LinkMessage(), index=index)

    # -- traffic ---------------------------------------------------------------------------------------------

    def drop_queue(self, index: int, name: str) -> None:
        """Take the queueing discipline from a tap: its ring is the queue.

        The host's default may be fq, which drops what mirred passes on with a timestamp of its arrival.
        """
        with _attempting(f"set the qdisc noqueue of {name}"):
            self._traffic(traffic.NEW_QDISC, CREATE | REPLACE, index, "noqueue", parent=traffic.ROOT)

    def add_ingress(self, index: int, name: str) -> None:
        """Give an interface an ingress qdisc."""
        with _attempting(f"add an ingress qdisc to {name}"):
            for pause in (*_SETTLING, None):
                try:
                    self._ingress(traffic.NEW_QDISC, CREATE | EXCL, index)
                except OSError as error:
                    if error.errno != errno.EBUSY or pause is None:
                        raise
                    time.sleep(pause)
                else:
                    return

    def delete_ingress(self, index: int, name: str) -> None:
        """Remove an interface's ingress qdisc with its filters; it may be gone."""
        with _attempting(f"remove the ingress qdisc of {name}", errno.ENOENT, errno.EINVAL, errno.ENODEV):
            self._ingress(traffic.DELETE_QDISC, 0, index)

    def redirect(self, source: int, target: int, name: str) -> None:
        """Send what comes in at one interface out of another, before the namespace's own stack sees it."""
        with _attempting(f"redirect what comes in at {name}"):
            self._filter(source, "u32", _REDIRECT_PRIORITY, traffic.redirecting(target))

    def judge(self, source: int, name: str, program: int) -> None:
        """Drop of what comes in at an interface what a program does not pass, before it is redirected.

        program: the descriptor of an eBPF program for traffic control.
        """
        with _attempting(f"filter what comes in at {name}"):
            self._filter(source, "bpf", _JUDGE_PRIORITY, traffic.judging(program, _JUDGE))

    def _ingress(self, change: int, flags: int, index: int) -> None:
        self._traffic(change, flags, index, "ingress", handle=traffic.INGRESS, parent=TC_H_INGRESS)

    def _filter(self, index: int, kind: str, priority: int, options: bytes) -> None:
        where = {"parent": traffic.INGRESS, "info": traffic.info(priority)}
        self._traffic(traffic.NEW_FILTER, CREATE | EXCL, index, kind, options=options, **where)

    def _traffic(
        self, change: int, flags: int, index: int, kind: str, /, *, options: bytes = b"", **place: int
    ) -> None:
        attributes: list[Any] = [["TCA_KIND", kind]]
        if options:
            attributes.append(["TCA_OPTIONS", options])
        self._socket.change(change, flags, TrafficMessage(), index=index, attrs=attributes, **place)

    # -- addresses and routes --------------------------------------------------------------------------------

    def add_address(self, index: int, name: str, address: Address) -> None:
        """Give an interface an address, or keep it."""
        wanted = [*_address(address), ["IFA_FLAGS", address.flags]]
        if address.broadcast:
            wanted.append(["IFA_BROADCAST", address.broadcast])
        with _attempting(f"add the address {address} to {name}", errno.EEXIST):
            self._socket.change(
                _NEW_ADDRESS,
                CREATE | EXCL,
                ifaddrmsg(),
                family=family_of(address.address),
                index=index,
                prefixlen=address.prefix,
                scope=address.scope,
                attrs=wanted,
            )

    def delete_address(self, index: int, name: str, address: Address) -> None:
        """Take an address from an interface; it may be gone."""
        with _attempting(f"remove the address {address} of {name}", errno.EADDRNOTAVAIL):
            self._socket.change(
                _DELETE_ADDRESS,
                0,
                ifaddrmsg(),
                family=family_of(address.address),
                index=index,
                prefixlen=address.prefix,
                attrs=_address(address),
            )

    def add_route(self, route: Route) -> None:
        """Add a route, or keep it."""
        destination, _, length = route.destination.partition("/")
        wanted = {
            "RTA_DST": destination,
            "RTA_GATEWAY": route.gateway,
            "RTA_PREFSRC": route.source,
            "RTA_PRIORITY": route.metric,
            "RTA_METRICS": {"attrs": [["RTAX_MTU", route.mtu]]} if route.mtu else None,
            "RTA_OIF": route.link,
            "RTA_TABLE": route.table,
        }
        with _attempting(f"add the route to {route}", errno.EEXIST):
            self._socket.change(
                _NEW_ROUTE,
                CREATE | EXCL,
                rtmsg(),
                family=route.family,
                dst_len=int(length or 0),
                table=min(route.table, _SMALL_TABLES),
                proto=route.protocol,
                scope=route.scope,
                type=route.type,
                flags=route.flags,
                attrs=[[name, value] for name, value in wanted.items() if value],
            )

    def add_neighbour(self, neighbour: Neighbour) -> None:
        """Add an entry to the neighbour tables, or keep it."""
        with _attempting(f"add the neighbour {neighbour.address}", errno.EEXIST):
            self._socket.change(
                _NEW_NEIGHBOUR,
                CREATE | EXCL,
                ndmsg(),
                family=family_of(neighbour.address),
                ifindex=neighbour.link,
                state=neighbour.state,
                flags=neighbour.flags,
                attrs=[["NDA_DST", neighbour.address], ["NDA_LLADDR", neighbour.mac]],
            )


def _address(address: Address) -> list[list[Any]]:
    return [["IFA_LOCAL", address.address], ["IFA_ADDRESS", address.address]]


@contextmanager
def _attempting(what: str, *harmless: int) -> Iterator[None]:
    """Turn the kernel's refusal into a sentence, but for numbers that say that nothing is left to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in harmless:
            raise NetworkError(f"cannot {what}: {_reason(what, error)}") from None


def _reason(what: str, error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ENOENT and any(word in what for word in ("qdisc", "redirect", "filter")):
        return (
            f"{text}: the host's kernel lacks traffic control; load sch_ingress, cls_bpf, cls_u32 and "
            'act_mirred, or set internetworking_model = "macvtap"'
        )
    if error.errno == errno.ENODEV:
        return f"{text}: the interface has gone meanwhile"
    return text
