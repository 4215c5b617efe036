"""Netlink in one network namespace: what it holds, and the few changes that attaching makes. Thin, by
pyroute2.

pyroute2 costs 0.1 s of CPU, so only the attach program imports this module.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from socket import AF_INET6, AF_UNSPEC

from kata_runtime.network import messages
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.library import IPRoute, NetlinkError
from kata_runtime.network.model import TC_H_INGRESS, Address, Namespace, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_INGRESS = 0xFFFF0000
_ROOT = 0xFFFFFFFF
_ETH_P_ALL = 0x0003
_REDIRECT_PRIORITY = 2
_SETTLING = (0.01, 0.02, 0.03, 0.04)
"""Seconds before each further try, while the kernel still takes an earlier qdisc of the link down."""


class Kernel:
    """Asks the kernel about the network namespace in which it was made; a context manager.

    Every method raises NetworkError where the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = IPRoute()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self) -> Namespace:
        """All that the namespace holds."""
        with _attempting("read the network namespace"):
            qdiscs = list(self._socket.get_qdiscs())
            ingress = [message["index"] for message in qdiscs if message["parent"] == TC_H_INGRESS]
            return messages.namespace(
                links=self._socket.get_links(),
                addresses=self._socket.get_addr(),
                routes=self._socket.get_routes(),
                neighbours=self._socket.get_neighbours(),
                qdiscs=qdiscs,
                filters=[
                    message
                    for index in ingress
                    for message in self._socket.get_filters(index=index, parent=_INGRESS)
                ],
                rules=self._socket.get_rules(family=AF_UNSPEC),
            )

    def index_of(self, name: str) -> int:
        """The index of the interface of that name, or 0."""
        with _attempting(f"look for the interface {name}"):
            found = list(self._socket.link_lookup(ifname=name))
        return int(found[0]) if found else 0

    # -- links -----------------------------------------------------------------------------------------------

    def set_mtu(self, index: int, name: str, mtu: int) -> None:
        """Set an interface's MTU."""
        with _attempting(f"set the MTU of {name} to {mtu}"):
            self._socket.link("set", index=index, mtu=mtu)

    def set_mac(self, index: int, name: str, mac: str) -> None:
        """Set an interface's MAC address."""
        with _attempting(f"set the MAC address of {name} to {mac}"):
            self._socket.link("set", index=index, address=mac)

    def set_up(self, index: int, name: str) -> None:
        """Switch an interface on."""
        with _attempting(f"switch {name} on"):
            self._socket.link("set", index=index, state="up")

    def add_macvtap(self, name: str, parent: int, index: int, mtu: int) -> bool:
        """Make a macvtap above an interface; whether the index was free."""
        with _attempting(f"make the macvtap {name}"):
            try:
                self._socket.link(
                    "add",
                    ifname=name,
                    kind="macvtap",
                    link=parent,
                    macvtap_mode="bridge",
                    index=index,
                    mtu=mtu,
                )
            except NetlinkError as error:
                if error.code == errno.EEXIST and not self.index_of(name):
                    return False
                raise
        return True

    def delete_link(self, index: int, name: str) -> None:
        """Remove an interface; it may be gone."""
        with _attempting(f"remove {name}", errno.ENODEV):
            self._socket.link("del", index=index)

    # -- traffic ---------------------------------------------------------------------------------------------

    def drop_queue(self, index: int, name: str) -> None:
        """Take the queueing discipline from a tap: its ring is the queue.

        The host's default may be fq, which drops what mirred passes on with a timestamp of its arrival.
        """
        with _attempting(f"set the qdisc noqueue of {name}"):
            self._socket.tc("replace", "noqueue", index, 0, parent=_ROOT)

    def add_ingress(self, index: int, name: str) -> None:
        """Give an interface an ingress qdisc."""
        with _attempting(f"add an ingress qdisc to {name}"):
            for pause in (*_SETTLING, None):
                try:
                    self._socket.tc("add", "ingress", index, _INGRESS)
                except NetlinkError as error:
                    if error.code != errno.EBUSY or pause is None:
                        raise
                    time.sleep(pause)
                else:
                    return

    def delete_ingress(self, index: int, name: str) -> None:
        """Remove an interface's ingress qdisc with its filters; it may be gone."""
        with _attempting(f"remove the ingress qdisc of {name}", errno.ENOENT, errno.EINVAL, errno.ENODEV):
            self._socket.tc("del", "ingress", index, _INGRESS)

    def redirect(self, source: int, target: int, name: str) -> None:
        """Send what comes in at one interface out of another, before the namespace's own stack sees it."""
        with _attempting(f"redirect what comes in at {name}"):
            self._socket.tc(
                "add-filter",
                "u32",
                source,
                0,
                parent=_INGRESS,
                prio=_REDIRECT_PRIORITY,
                protocol=_ETH_P_ALL,
                target=0,
                keys=["0x0/0x0+0"],
                action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target},
            )

    # -- addresses and routes --------------------------------------------------------------------------------

    def add_address(self, index: int, name: str, address: Address) -> None:
        """Give an interface an address, or keep it."""
        with _attempting(f"add the address {address} to {name}", errno.EEXIST):
            self._socket.addr(
                "add",
                index=index,
                address=address.address,
                prefixlen=address.prefix,
                scope=address.scope,
                flags=address.flags,
            )

    def delete_address(self, index: int, name: str, address: Address) -> None:
        """Take an address from an interface; it may be gone."""
        with _attempting(f"remove the address {address} of {name}", errno.EADDRNOTAVAIL):
            self._socket.addr("del", index=index, address=address.address, prefixlen=address.prefix)

    def add_route(self, route: Route) -> None:
        """Add a route, or keep it."""
        wanted = {
            "dst": route.destination or ("::/0" if route.family == AF_INET6 else "0.0.0.0/0"),
            "gateway": route.gateway,
            "prefsrc": route.source,
            "priority": route.metric,
            "metrics": {"mtu": route.mtu} if route.mtu else None,
        }
        with _attempting(f"add the route to {route}", errno.EEXIST):
            self._socket.route(
                "add",
                family=route.family,
                oif=route.link,
                scope=route.scope,
                flags=route.flags,
                proto=route.protocol,
                table=route.table,
                type=route.type,
                **{name: value for name, value in wanted.items() if value},
            )


@contextmanager
def _attempting(what: str, *harmless: int) -> Iterator[None]:
    """Turn the kernel's refusal into a sentence, but for numbers that say that nothing is left to do."""
    try:
        yield
    except NetlinkError as error:
        if error.code in harmless:
            return
        raise NetworkError(f"cannot {what}: {_reason(what, error)}") from None
    except OSError as error:
        raise NetworkError(f"cannot {what}: {error.strerror or error}") from None


def _reason(what: str, error: NetlinkError) -> str:
    text: str = error.args[1] if len(error.args) > 1 else str(error)
    if error.code == errno.ENOENT and ("qdisc" in what or "redirect" in what):
        return (
            f"{text}: the host's kernel lacks traffic control; load sch_ingress, cls_u32 and act_mirred, "
            'or set internetworking_model = "macvtap"'
        )
    if error.code == errno.ENODEV:
        return f"{text}: the interface has gone meanwhile"
    return text
