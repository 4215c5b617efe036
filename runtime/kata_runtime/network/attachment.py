"""Attaching what a plan says, and taking it away again. Runs in the pod's network namespace.

Taking away needs a record only: it is written before the first change and names all that may have been
changed, so it also serves after a kill in the middle. It leaves links, addresses, routes, permanent
neighbours, qdiscs and filters as they were.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from kata_runtime.network import plan as planning
from kata_runtime.network import taps
from kata_runtime.network.errors import NetworkError, TakenError
from kata_runtime.network.model import IFA_F_DADFAILED, RTPROT_KERNEL, Namespace
from kata_runtime.network.plan import Attachment
from kata_runtime.network.record import Record, RecordFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kata_runtime.network.kernel import Kernel
    from kata_runtime.network.model import Link

_MACVTAP_INDEXES = range(8192, 8192 + 65536)
"""Where the indexes of macvtaps are drawn from: /dev/tapN is one for all namespaces of the host together."""

_MACVTAP_TRIES = 128


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is attached.

    queues: pairs for each interface. header: see `taps`. named: for a VMM that opens its devices by name, as
    the user `owner`.
    forward: whether connections to the namespace's loopback are redirected, for port-forwarding.
    spoof_protection: whether only the guest's addresses leave a tap of ours, and not just its MAC address.
    """

    queues: int = 1
    header: bool = True
    named: bool = False
    owner: int = 0
    forward: bool = False
    spoof_protection: bool = True


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
        TakenError: another sandbox has attached it since it was read, which nothing happens to.
        NetworkError: a step failed; everything is as before.
    """
    records.save(Record.of(namespace, plan.attachments, forwarded=wanted.forward))
    attached = Attached([], [], [])
    try:
        told = not wanted.header or _tells_places(kernel, plan)
        for attachment in plan.attachments:
            attached.queues.append(_attach(kernel, attachment, wanted, places_told=told))
        if wanted.forward:
            _forward(attached)
    except BaseException as error:
        attached.close()
        if isinstance(error, TakenError):  # meanwhile: only what came before is ours
            records.save(Record.of(namespace, plan.attachments[: len(attached.queues)], forwarded=False))
        detach(kernel, records)
        raise
    return attached


def _forward(attached: Attached) -> None:
    """Redirect loopback; a host that cannot has pods without port-forwarding. Raises TakenError."""
    from kata_runtime.network import forwarding

    try:
        attached.listeners.extend(forwarding.listeners())
        forwarding.redirect(forwarding.port_of(attached.listeners[0]))
    except TakenError:
        raise
    except NetworkError as error:
        taps.close_all(attached.listeners)
        attached.warnings.append(f"ports of the pod cannot be forwarded: {error}")


def _tells_places(kernel: Kernel, plan: planning.Plan) -> bool:
    """Whether the kernel tells where checksums are to be written; asked where a tap of ours has a filter."""
    from kata_runtime.network import checksum_places

    filtered = any(attachment.model == planning.TCFILTER for attachment in plan.attachments)
    return not filtered or checksum_places.are_told(kernel)


def _attach(kernel: Kernel, attachment: Attachment, wanted: Wanted, *, places_told: bool) -> list[int]:
    if attachment.model == planning.DIRECT:
        if wanted.named:
            return []
        return taps.open_tap(attachment.tap, wanted.queues, header=wanted.header, new=False)
    if attachment.model == planning.MACVTAP:
        return _attach_macvtap(kernel, attachment, wanted)
    return _attach_tap(kernel, attachment, wanted, places_told=places_told)


def _attach_tap(kernel: Kernel, attachment: Attachment, wanted: Wanted, *, places_told: bool) -> list[int]:
    link, name = attachment.link, attachment.tap
    fds = taps.open_tap(name, wanted.queues, header=wanted.header, new=True)
    try:
        if wanted.named:
            taps.give_to(fds[0], wanted.owner)
        tap = kernel.index_of(name)
        taps.keep_silent(name)
        kernel.set_mtu(tap, name, link.mtu)
        kernel.drop_queue(tap, name)
        kernel.set_up(tap, name)
        kernel.add_ingress(tap, name)
        _check_there(kernel, link)
        kernel.add_ingress(link.index, link.name)
        _judge(kernel, tap, attachment, with_addresses=wanted.spoof_protection, places_told=places_told)
        kernel.redirect(tap, link.index, name)
        kernel.redirect(link.index, tap, link.name)
    except BaseException:
        taps.close_all(fds)
        raise
    if wanted.named:
        taps.close_all(fds)
    return fds


def _check_there(kernel: Kernel, link: Link) -> None:
    """Raise NetworkError where an interface has gone: its index may be another's by now, even the tap's."""
    if kernel.index_of(link.name) != link.index:
        raise NetworkError(f"cannot attach the interface {link.name}: the interface has gone meanwhile")


def _judge(
    kernel: Kernel, tap: int, attachment: Attachment, *, with_addresses: bool, places_told: bool
) -> None:
    """Let out of the tap only what has the guest's MAC address, and its addresses."""
    from kata_runtime import syscalls
    from kata_runtime.network import spoofing

    link = attachment.link
    addresses = [entry.address for entry in link.addresses if not entry.flags & IFA_F_DADFAILED]
    try:
        code = spoofing.program(link.mac, addresses if with_addresses else None, places_told=places_told)
    except ValueError:
        raise NetworkError(
            f"cannot attach the interface {link.name}: its {len(addresses)} addresses are too many for one "
            "filter; set spoof_protection = false in [runtime]"
        ) from None
    try:
        program = syscalls.load_traffic_program(code)
    except OSError as error:
        raise NetworkError(
            f"cannot load the filter for what comes in at {attachment.tap}: bpf: {error.strerror}; the "
            f'host\'s kernel needs CONFIG_BPF_SYSCALL, or set internetworking_model = "{planning.MACVTAP}"'
        ) from None
    try:
        kernel.judge(tap, attachment.tap, program)
    finally:
        os.close(program)


def _attach_macvtap(kernel: Kernel, attachment: Attachment, wanted: Wanted) -> list[int]:
    link, name = attachment.link, attachment.tap
    if wanted.named:
        raise NetworkError(
            f"cannot attach the interface {link.name}: the hypervisor opens devices by name, and a macvtap "
            f'is opened by its number; set internetworking_model = "{planning.TCFILTER}"'
        )
    _check_there(kernel, link)
    index = _make_macvtap(kernel, attachment)
    taps.keep_silent(name)
    for address in link.addresses:
        kernel.delete_address(link.index, link.name, address)
    kernel.set_mac(link.index, link.name, _random_mac())
    kernel.set_mac(index, name, link.mac)
    kernel.set_up(index, name)
    return taps.open_macvtap(name, index, link.mac, wanted.queues, header=wanted.header)


def _make_macvtap(kernel: Kernel, attachment: Attachment) -> int:
    import random

    link, name = attachment.link, attachment.tap
    for index in random.sample(_MACVTAP_INDEXES, _MACVTAP_TRIES):
        if not os.path.exists(f"/dev/tap{index}") and kernel.add_macvtap(name, link.index, index, link.mtu):
            return index
    raise NetworkError(
        f"cannot make the macvtap {name}: none of {_MACVTAP_TRIES} indexes was free on this host"
    )


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
        for step in _undoing(kernel, attachment, indexes, record)
    ]
    if record.forwarded:
        from kata_runtime.network import forwarding

        steps.append(forwarding.remove)
    _do_all(steps)
    records.clear()


def _undoing(
    kernel: Kernel, attachment: Attachment, indexes: dict[str, int], record: Record
) -> Iterator[Callable[[], None]]:
    link, name = attachment.link, attachment.tap
    if attachment.model == planning.DIRECT:
        return
    there = indexes.get(link.name) == link.index
    if attachment.model == planning.TCFILTER and there:
        yield partial(kernel.delete_ingress, link.index, link.name)
        # The kernel set one of 0 to 1000 with the first qdisc (net/sched/sch_api.c, qdisc_create).
        yield partial(kernel.set_queue_length, link.index, link.name, link.queue_length)
    if name in indexes:
        yield partial(kernel.delete_link, indexes[name], name)
    if attachment.model == planning.MACVTAP and there:
        yield partial(kernel.set_mac, link.index, link.name, link.mac)
        for address in link.addresses:
            yield partial(kernel.add_address, link.index, link.name, address)
        own = [
            route for route in record.routes if route.link == link.index and route.protocol != RTPROT_KERNEL
        ]
        for route in sorted(own, key=lambda route: bool(route.gateway)):
            yield partial(kernel.add_route, route)
        for neighbour in record.neighbours:
            if neighbour.link == link.index:
                yield partial(kernel.add_neighbour, neighbour)


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
