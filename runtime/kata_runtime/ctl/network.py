"""`kata-ctl network [POD]`: each interface as the pod's namespace has it, beside what the guest says."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.client import Client
from kata_agent.ttrpc.status import RpcError
from kata_runtime.broker import pod_network
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.broker.pod_identity import INIT
from kata_runtime.ctl import running
from kata_runtime.ctl.running import RecordedSandbox
from kata_runtime.logging import printable
from kata_runtime.network import comparison, guest
from kata_runtime.network.comparison import Facts
from kata_runtime.network.errors import NetworkError
from kata_runtime.network.plan import Plan
from kata_runtime.shim.network_service import LIST_INTERFACES, LIST_ROUTES, SERVICE

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

EQUAL, DIFFERENT, COULD_NOT_RUN = 0, 1, 2
TIMEOUT = 60.0
"""Seconds that a guest may take to answer."""

_ROW = "    {:<8} {:<44} {}"
_ABSENT = "-"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "network",
        help="compare a pod's network with its guest's",
        description="Print, for each interface of the running pods, what their network namespace says of it "
        "beside what the guest says: MAC address, MTU, addresses, routes. Needs root.",
        epilog="Exit status: 0 equal, 1 they differ, 2 there is no such pod, or it cannot be asked.",
    )
    parser.add_argument("pod", nargs="?", default="", help="only this sandbox: its id, or a prefix of it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class PodReport:
    """One pod. interfaces: by name, as the namespace and as the guest has it; None where it has not."""

    id: str
    namespace: str
    interfaces: dict[str, tuple[Facts | None, Facts | None]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()


class PodUnreadableError(Exception):
    """A pod cannot be asked, in a sentence."""


def run(arguments: argparse.Namespace) -> int:
    """Print the reports and return the exit status."""
    reports, status = [], EQUAL
    for sandbox in running.chosen(arguments.pod):
        try:
            reports.append(report_of(sandbox))
        except PodUnreadableError as error:
            print(f"kata-ctl: {printable(str(error))}", file=sys.stderr)
            status = COULD_NOT_RUN
    if arguments.json:
        print(json.dumps([_json(report) for report in reports], indent=2))
    else:
        print(printable("\n".join(line for report in reports for line in _lines(report))))
    return status or (DIFFERENT if any(report.differences for report in reports) else EQUAL)


def report_of(sandbox: RecordedSandbox) -> PodReport:
    """Ask the namespace and the guest of a pod.

    Raises:
        PodUnreadableError: one of them cannot be asked.
    """
    inside = next((process.pid for process in sandbox.processes if process.name == INIT), None)
    if inside is None:
        return PodReport(sandbox.id, sandbox.namespace)
    try:
        found = pod_network.read(sandbox.directory, inside)
    except (OSError, NetworkError, RequestFailedError) as error:
        raise PodUnreadableError(f"cannot read the network namespace of {sandbox.id}: {error}") from None
    if found is None or not found[0].attachments:
        return PodReport(sandbox.id, sandbox.namespace)
    record, namespace = found
    plan = record.plan(namespace)
    kept = {attachment.link.name for attachment in plan.attachments}
    gone = [entry.link.name for entry in record.attachments if entry.link.name not in kept]
    return compare(sandbox, plan, gone, *asyncio.run(_ask_guest(sandbox)))


def compare(
    sandbox: RecordedSandbox,
    plan: Plan,
    gone: Iterable[str],
    interfaces: agent_pb2.Interfaces,
    routes: agent_pb2.Routes,
) -> PodReport:
    """Put both sides together. gone: interfaces that were attached, and that the namespace lacks now."""
    wanted = guest.describe(plan)
    outside = comparison.facts(wanted.interfaces, wanted.routes.Routes)
    inside = comparison.facts(interfaces.Interfaces, routes.Routes)
    lines = [f"the namespace has no interface {name} any more" for name in gone]
    return PodReport(
        sandbox.id,
        sandbox.namespace,
        {name: (outside.get(name), inside.get(name)) for name in (*outside, *gone)},
        (*lines, *comparison.differences(plan, interfaces, routes)),
    )


async def _ask_guest(sandbox: RecordedSandbox) -> tuple[agent_pb2.Interfaces, agent_pb2.Routes]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(sandbox.socket)
    except OSError as error:
        sock.close()
        raise PodUnreadableError(
            f"cannot connect to the shim of {sandbox.id} at {sandbox.socket}: {error.strerror}"
        ) from None
    client = await Client.from_socket(sock)
    try:
        interfaces = await client.call(
            SERVICE,
            LIST_INTERFACES,
            agent_pb2.ListInterfacesRequest(),
            agent_pb2.Interfaces,
            timeout=TIMEOUT,
        )
        routes = await client.call(
            SERVICE, LIST_ROUTES, agent_pb2.ListRoutesRequest(), agent_pb2.Routes, timeout=TIMEOUT
        )
    except RpcError as error:
        raise PodUnreadableError(f"the guest of {sandbox.id} does not answer: {error}") from None
    finally:
        await client.aclose()
    return interfaces, routes


def _json(report: PodReport) -> dict[str, Any]:
    interfaces = [
        {"name": name, "namespace": outside and asdict(outside), "guest": inside and asdict(inside)}
        for name, (outside, inside) in report.interfaces.items()
    ]
    return {
        "id": report.id,
        "namespace": report.namespace,
        "interfaces": interfaces,
        "differences": list(report.differences),
    }


def _lines(report: PodReport) -> Iterator[str]:
    yield f"pod {report.id} (namespace {report.namespace})"
    if not report.interfaces:
        yield "  the guest was given no network"
    for name, (outside, inside) in report.interfaces.items():
        yield f"  {name}"
        yield _ROW.format("", "in the namespace", "in the guest")
        yield from _rows(outside, inside)
    for line in report.differences:
        yield f"  differs: {line}"


def _rows(outside: Facts | None, inside: Facts | None) -> Iterator[str]:
    for word, left, right in (
        ("MAC", _one(outside.mac if outside else None), _one(inside.mac if inside else None)),
        ("MTU", _one(outside.mtu if outside else None), _one(inside.mtu if inside else None)),
        ("address", outside.addresses if outside else (), inside.addresses if inside else ()),
        ("route", outside.routes if outside else (), inside.routes if inside else ()),
    ):
        for value in dict.fromkeys((*left, *right)):
            yield _ROW.format(word, value if value in left else _ABSENT, value if value in right else _ABSENT)


def _one(value: str | int | None) -> tuple[str, ...]:
    return () if value is None else (str(value),)
