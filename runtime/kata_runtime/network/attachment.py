"""Attaching what a plan says, and taking it away again. Runs in the pod's network namespace.

Taking away needs a record only: it is written before the first change and names all that may have been
changed, so it also serves after a kill in the middle. It leaves links, addresses, routes, qdiscs and filters
as they were.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kata_runtime.network import plan as planning
from kata_runtime.network import taps
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.model import RTPROT_KERNEL, Namespace, Route
from kata_runtime.network.plan import Attachment
from kata_runtime.network.record import Record, RecordFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kata_runtime.network.kernel import Kernel

_MACVTAP_INDEXES = range(8192, 8192 + 65536)
"""Where the indexes of macvtaps are drawn from: /dev/tapN is one for all namespaces of the host together."""

_MACVTAP_TRIES = 128
_NO_IPV6 = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is attached.

    queues: pairs for each interface. header: see `taps`. named: for a VMM that opens its devices by name.
    forward: whether connections to the namespace's loopback are redirected, for port-forwarding.
    """

    queues: int = 1
    header: bool = True
    named: bool = False
    forward: bool = False


@dataclass(frozen=True, slots=True)
class Attached:
    """What was opened. queues: of each interface, none where the VMM opens it by its name.

    listeners: where redirected connections come to. warnings: what the operator should know.
    """

    queues: list[list[int]]
    listeners: list[int]
    warnings: list[str]

    def close(self) -> None:
        """Close all descriptors."""
        for fds in (*self.queues, self.listeners):
            taps.close_all(fds)


def attach(
    kernel: Kernel, namespace: Namespace, plan: planning.Plan, wanted: Wanted, records: RecordFile
) -> Attached:
    """Attach every interface of a plan.

    records: keeps what has to be undone, from before the first change.

    Raises:
        NetworkError: a step failed; everything is as before.
    """
    records.save(Record.of(namespace, plan.attachments, forwarded=wanted.forward))
    attached = Attached([], [], [])
    try:
        for attachment in plan.attachments:
            attached.queues.append(_attach(kernel, attachment, wanted))
        if wanted.forward:
            _forward(attached)
    except BaseException:
        attached.close()
        detach(kernel, records)
        raise
    return attached


def _forward(attached: Attached) -> None:
    """Redirect loopback; a host that cannot has pods without port-forwarding."""
    from kata_runtime.network import forwarding

    try:
        attached.listeners.extend(forwarding.listeners())
        forwarding.redirect(forwarding.port_of(attached.listeners[0]))
    except NetworkError as error:
        taps.close_all(attached.listeners)
        attached.warnings.append(f"ports of the pod cannot be forwarded: {error}")


def _attach(kernel: Kernel, attachment: Attachment, wanted: Wanted) -> list[int]:
    if attachment.model == planning.DIRECT:
        if wanted.named:
            return []
        return taps.open_tap(attachment.tap, wanted.queues, header=wanted.header, new=False)
    if attachment.model == planning.MACVTAP:
        return _attach_macvtap(kernel, attachment, wanted)
    return _attach_tap(kernel, attachment, wanted)


def _attach_tap(kernel: Kernel, attachment: Attachment, wanted: Wanted) -> list[int]:
    link, name = attachment.link, attachment.tap
    fds = taps.open_tap(name, wanted.queues, header=wanted.header, new=True)
    try:
        if wanted.named:
            taps.persist(fds[0])
        tap = kernel.index_of(name)
        _keep_silent(name)
        kernel.set_mtu(tap, name, link.mtu)
        kernel.drop_queue(tap, name)
        kernel.set_up(tap, name)
        kernel.add_ingress(tap, name)
        kernel.add_ingress(link.index, link.name)
        kernel.redirect(tap, link.index, name)
        kernel.redirect(link.index, tap, link.name)
    except BaseException:
        taps.close_all(fds)
        raise
    if wanted.named:
        taps.close_all(fds)
    return fds


def _attach_macvtap(kernel: Kernel, attachment: Attachment, wanted: Wanted) -> list[int]:
    link, name = attachment.link, attachment.tap
    if wanted.named:
        raise NetworkError(
            f"cannot attach the interface {link.name}: the hypervisor opens devices by name, and a macvtap "
            f'is opened by its number; set internetworking_model = "{planning.TCFILTER}"'
        )
    index = _make_macvtap(kernel, attachment)
    _keep_silent(name)
    for address in link.addresses:
        kernel.delete_address(link.index, link.name, address)
    kernel.set_mac(link.index, link.name, _random_mac())
    kernel.set_mac(index, name, link.mac)
    kernel.set_up(index, name)
    return taps.open_macvtap(name, index, wanted.queues, header=wanted.header)


def _make_macvtap(kernel: Kernel, attachment: Attachment) -> int:
    link, name = attachment.link, attachment.tap
    for index in random.sample(_MACVTAP_INDEXES, _MACVTAP_TRIES):
        if not os.path.exists(f"/dev/tap{index}") and kernel.add_macvtap(name, link.index, index, link.mtu):
            return index
    raise NetworkError(
        f"cannot make the macvtap {name}: none of {_MACVTAP_TRIES} indexes was free on this host"
    )


def _keep_silent(name: str) -> None:
    """Let the namespace's own stack send the guest nothing: no router solicitation, no multicast report."""
    path = Path(_NO_IPV6.format(name))
    if path.exists():  # not where the host has no IPv6
        path.write_text("1")


def _random_mac() -> str:
    """A unicast address of the locally administered kind."""
    return bytes([0x02, *os.urandom(5)]).hex(":")


def detach(kernel: Kernel, records: RecordFile) -> None:
    """Take away what was attached; what is gone already, or was never made, is no error.

    Raises:
        NetworkError: the kernel refused. The rest is taken away, and the record is kept.
    """
    record = records.load()
    if record is None:
        return
    indexes = {link.name: link.index for link in kernel.read().links}
    steps: list[Callable[[], None]] = [
        step
        for attachment in reversed(record.attachments)
        for step in _undoing(kernel, attachment, indexes, record.routes)
    ]
    if record.forwarded:
        from kata_runtime.network import forwarding

        steps.append(forwarding.remove)
    _do_all(steps)
    records.clear()


def _undoing(
    kernel: Kernel, attachment: Attachment, indexes: dict[str, int], routes: Sequence[Route]
) -> Iterator[Callable[[], None]]:
    link, name = attachment.link, attachment.tap
    if attachment.model == planning.DIRECT:
        return
    there = indexes.get(link.name) == link.index
    if attachment.model == planning.TCFILTER and there:
        yield partial(kernel.delete_ingress, link.index, link.name)
    if name in indexes:
        yield partial(kernel.delete_link, indexes[name], name)
    if attachment.model == planning.MACVTAP and there:
        yield partial(kernel.set_mac, link.index, link.name, link.mac)
        for address in link.addresses:
            yield partial(kernel.add_address, link.index, link.name, address)
        own = [route for route in routes if route.link == link.index and route.protocol != RTPROT_KERNEL]
        for route in sorted(own, key=lambda route: bool(route.gateway)):
            yield partial(kernel.add_route, route)


def _do_all(steps: Iterable[Callable[[], None]]) -> None:
    """Do every step, and raise the first error in the end."""
    first: NetworkError | None = None
    for step in steps:
        try:
            step()
        except NetworkError as error:
            first = first or error
    if first is not None:
        raise first
