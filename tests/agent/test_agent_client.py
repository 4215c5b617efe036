"""The agent's client against our own server, and its table against the descriptors."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_agent.client import AgentClient, Rpc
from kata_agent.constants import AGENT_PORT, FEATURE_STREAM_IO
from kata_agent.mux.guest import MuxGuest
from kata_agent.protos import agent_pb2, health_pb2
from kata_agent.transport import GuestUnreachableError
from kata_agent.transports import SerialTransport
from kata_agent.ttrpc.blocking import BlockingHandler, BlockingServer
from kata_agent.ttrpc.server import Handler, Server
from kata_agent.ttrpc.service import service_of
from kata_agent.ttrpc.status import Code, RpcError

SERVICES = {
    service.full_name: service
    for service in (
        service_of(agent_pb2.DESCRIPTOR.services_by_name["AgentService"]),
        service_of(health_pb2.DESCRIPTOR.services_by_name["Health"]),
    )
}
RPCS = {name: rpc for name, rpc in vars(AgentClient).items() if isinstance(rpc, Rpc)}


@pytest.mark.parametrize("name", RPCS)
def test_table_is_what_the_descriptors_say(name: str) -> None:
    rpc = RPCS[name]
    method = SERVICES[rpc.service].methods[rpc.name]
    assert (rpc.request, rpc.response) == (method.request, method.response)
    assert name.replace("_", "") == rpc.name.lower()


def test_what_a_session_needs_is_there() -> None:
    assert {
        "add_arp_neighbors", "check", "close_stdin", "copy_file", "create_container", "create_sandbox",
        "exec_process", "get_guest_details", "get_oom_event",
        "list_interfaces", "online_cpu_mem", "pause_container", "read_stderr", "read_stdout",
        "remove_container", "reseed_random_dev", "resume_container", "set_guest_date_time",
        "signal_process", "start_container", "stats_container", "tty_win_resize", "update_container",
        "update_interface", "update_routes", "wait_process", "write_stdin",
    } <= RPCS.keys()  # fmt: skip


class Guest:
    """A transport to an agent that serves three methods, and that answers from the nth try on."""

    def __init__(self, *, refusals: int = 0) -> None:
        self.refusals = refusals
        self.ports: list[int] = []
        self.serving: list[asyncio.Task[None]] = []
        self.server = Server(
            {
                ("grpc.Health", "Check"): Handler(health_pb2.CheckRequest, self.check),
                ("grpc.AgentService", "PauseContainer"): Handler(agent_pb2.PauseContainerRequest, self.never),
                ("grpc.AgentService", "WaitProcess"): Handler(agent_pb2.WaitProcessRequest, self.wait),
            }
        )

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        self.ports.append(port)
        if self.refusals:
            self.refusals -= 1
            raise GuestUnreachableError("still booting")
        ours, theirs = socket.socketpair()
        self.serving.append(asyncio.create_task(self.server.serve_connection(theirs)))
        return ours, 1

    async def aclose(self) -> None:
        await asyncio.gather(*self.serving)

    async def check(self, request: Message) -> Message:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def never(self, request: Message) -> Message:
        await asyncio.Event().wait()
        return Empty()

    async def wait(self, request: agent_pb2.WaitProcessRequest) -> Message:
        await asyncio.sleep(0.05)
        return agent_pb2.WaitProcessResponse(status=42)


async def test_connects_when_the_guest_listens() -> None:
    guest = Guest(refusals=3)
    agent = await AgentClient.connect(guest, interval=0, deadline=60)
    assert guest.ports == [1024] * 4
    answer = await agent.check(health_pb2.CheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not agent.closed
    await agent.aclose()
    assert agent.closed
    await agent.wait_closed()
    await guest.aclose()


async def test_deadline_names_the_last_reason() -> None:
    guest = Guest(refusals=1 << 30)
    with pytest.raises(GuestUnreachableError, match=r"port 9 within 0\.02 s: still booting"):
        await AgentClient.connect(guest, port=9, interval=0.001, deadline=0.02)


async def test_other_failures_are_not_retried() -> None:
    class Broken(Guest):
        async def connect(self, port: int) -> tuple[socket.socket, int]:
            raise PermissionError("no")

    with pytest.raises(PermissionError):
        await AgentClient.connect(Broken(), deadline=60)


async def test_calls_are_bounded_unless_they_report_events() -> None:
    guest = Guest()
    agent = await AgentClient.connect(guest, deadline=60, timeout=0.01)
    with pytest.raises(RpcError, match=r"grpc\.AgentService/PauseContainer: no") as caught:
        await agent.pause_container(agent_pb2.PauseContainerRequest(container_id="c"))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert (await agent.wait_process(agent_pb2.WaitProcessRequest(container_id="c"))).status == 42
    with pytest.raises(RpcError):
        await agent.wait_process(agent_pb2.WaitProcessRequest(), timeout=0.001)
    with pytest.raises(RpcError) as caught:
        await agent.get_guest_details(agent_pb2.GuestDetailsRequest(), timeout=60)
    assert caught.value.code is Code.UNIMPLEMENTED
    await agent.aclose()
    await guest.aclose()


async def test_whole_way_over_the_serial_port() -> None:
    """Client, serial transport and host's end against the guest's end and its threaded server."""

    def details(request: Message) -> Message:
        return agent_pb2.GuestDetailsResponse(
            agent_details=agent_pb2.AgentDetails(extra_features=[FEATURE_STREAM_IO])
        )

    handlers: dict[tuple[str, str], BlockingHandler] = {
        ("grpc.AgentService", "GetGuestDetails"): BlockingHandler(agent_pb2.GuestDetailsRequest, details)
    }
    ours, theirs = socket.socketpair()
    guest = MuxGuest(theirs.fileno())
    acceptor = guest.listen(AGENT_PORT)
    running = threading.Thread(target=guest.run)
    running.start()

    def serve() -> None:
        BlockingServer(handlers, log=print).serve(acceptor.accept()[0])

    serving = asyncio.create_task(asyncio.to_thread(serve))
    transport = SerialTransport(ours)
    agent = await AgentClient.connect(transport, deadline=60)
    answers = await asyncio.gather(
        *(agent.get_guest_details(agent_pb2.GuestDetailsRequest()) for _ in range(20))
    )
    assert all(FEATURE_STREAM_IO in answer.agent_details.extra_features for answer in answers)
    await transport.aclose()
    await agent.wait_closed()
    await serving
    await asyncio.to_thread(running.join)
    theirs.close()
