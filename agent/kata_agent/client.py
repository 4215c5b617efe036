"""The client of the guest's agent: one typed coroutine for each method of its services."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_agent.constants import AGENT_PORT
from kata_agent.protos import agent_pb2 as pb
from kata_agent.protos import health_pb2, types_pb2
from kata_agent.transport import GuestTransport, GuestUnreachableError
from kata_agent.ttrpc.client import Client

AGENT = "grpc.AgentService"
HEALTH = "grpc.Health"

FIRST_TRY = 0.5
"""Seconds for the first try to reach a guest that boots, which does not answer at all; each try gets twice as
long as the one before, so that one that is slow is reached as well."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
_Request_contra = TypeVar("_Request_contra", bound=Message, contravariant=True)
_Response_co = TypeVar("_Response_co", bound=Message, covariant=True)


class _Call(Protocol[_Request_contra, _Response_co]):
    async def __call__(self, request: _Request_contra, *, timeout: float | None = None) -> _Response_co: ...


class Rpc(Generic[Request, Response]):
    """A method of the agent as an attribute of AgentClient: `await agent.method(request, timeout=None)`.

    unbounded: whether the answer may take for ever, because it reports an event; the others fail after the
    client's `timeout`, in seconds, or the one that is given with the call.
    """

    def __init__(
        self,
        name: str,
        request: type[Request],
        response: type[Response],
        *,
        service: str = AGENT,
        unbounded: bool = False,
    ) -> None:
        self.service = service
        self.name = name
        self.request = request
        self.response = response
        self.unbounded = unbounded

    def __get__(self, agent: AgentClient, owner: type[AgentClient]) -> _Call[Request, Response]:
        async def call(request: Request, *, timeout: float | None = None) -> Response:
            if timeout is None and not self.unbounded:
                timeout = agent.timeout
            return await agent.client.call(self.service, self.name, request, self.response, timeout=timeout)

        return call


class AgentClient:
    """The agent of one guest. Every call may raise RpcError; see Client.call.

    timeout: seconds that a call may take unless it says otherwise.
    """

    def __init__(self, client: Client, *, timeout: float) -> None:
        self.client = client
        self.timeout = timeout

    @classmethod
    async def connect(
        cls,
        transport: GuestTransport,
        *,
        port: int = AGENT_PORT,
        interval: float = 0.01,
        deadline: float,
        timeout: float | None = None,
    ) -> AgentClient:
        """Connect as soon as the guest listens.

        interval, deadline: seconds between tries, and until the last. timeout: of each call later; without
        one, the deadline.

        Raises:
            GuestUnreachableError: nobody listened within the deadline.
        """
        timeout = deadline if timeout is None else timeout
        reason, patience = "no answer", FIRST_TRY
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        async with asyncio.timeout(patience):
                            sock, _ = await transport.connect(port)
                        return cls(await Client.from_socket(sock), timeout=timeout)
                    except GuestUnreachableError as error:
                        reason = str(error)
                    except TimeoutError:
                        reason, patience = f"no answer for {patience:g} s", 2 * patience
                    await asyncio.sleep(interval)
        except TimeoutError:
            raise GuestUnreachableError(
                f"the guest's agent did not answer on port {port} within {deadline:g} s: {reason}"
            ) from None

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self.client.closed

    async def wait_closed(self) -> None:
        """Return once the connection has ended: the agent or its guest is gone."""
        await self.client.wait_closed()

    async def aclose(self) -> None:
        """End the connection; calls that wait fail with ConnectionClosedError."""
        await self.client.aclose()

    check = Rpc("Check", health_pb2.CheckRequest, health_pb2.HealthCheckResponse, service=HEALTH)

    create_sandbox = Rpc("CreateSandbox", pb.CreateSandboxRequest, Empty)
    get_guest_details = Rpc("GetGuestDetails", pb.GuestDetailsRequest, pb.GuestDetailsResponse)
    get_metrics = Rpc("GetMetrics", pb.GetMetricsRequest, pb.Metrics)
    get_oom_event = Rpc("GetOOMEvent", pb.GetOOMEventRequest, pb.OOMEvent, unbounded=True)
    online_cpu_mem = Rpc("OnlineCPUMem", pb.OnlineCPUMemRequest, Empty)
    reseed_random_dev = Rpc("ReseedRandomDev", pb.ReseedRandomDevRequest, Empty)
    set_guest_date_time = Rpc("SetGuestDateTime", pb.SetGuestDateTimeRequest, Empty)
    copy_file = Rpc("CopyFile", pb.CopyFileRequest, Empty)

    create_container = Rpc("CreateContainer", pb.CreateContainerRequest, Empty)
    start_container = Rpc("StartContainer", pb.StartContainerRequest, Empty)
    remove_container = Rpc("RemoveContainer", pb.RemoveContainerRequest, Empty)
    remove_stale_virtiofs_share_mounts = Rpc(
        "RemoveStaleVirtiofsShareMounts", pb.RemoveStaleVirtiofsShareMountsRequest, Empty
    )
    update_container = Rpc("UpdateContainer", pb.UpdateContainerRequest, Empty)
    stats_container = Rpc("StatsContainer", pb.StatsContainerRequest, pb.StatsContainerResponse)
    pause_container = Rpc("PauseContainer", pb.PauseContainerRequest, Empty)
    resume_container = Rpc("ResumeContainer", pb.ResumeContainerRequest, Empty)

    exec_process = Rpc("ExecProcess", pb.ExecProcessRequest, Empty)
    signal_process = Rpc("SignalProcess", pb.SignalProcessRequest, Empty)
    wait_process = Rpc("WaitProcess", pb.WaitProcessRequest, pb.WaitProcessResponse, unbounded=True)
    read_stdout = Rpc("ReadStdout", pb.ReadStreamRequest, pb.ReadStreamResponse, unbounded=True)
    read_stderr = Rpc("ReadStderr", pb.ReadStreamRequest, pb.ReadStreamResponse, unbounded=True)
    write_stdin = Rpc("WriteStdin", pb.WriteStreamRequest, pb.WriteStreamResponse, unbounded=True)
    close_stdin = Rpc("CloseStdin", pb.CloseStdinRequest, Empty)
    tty_win_resize = Rpc("TtyWinResize", pb.TtyWinResizeRequest, Empty)

    update_interface = Rpc("UpdateInterface", pb.UpdateInterfaceRequest, types_pb2.Interface)
    update_routes = Rpc("UpdateRoutes", pb.UpdateRoutesRequest, pb.Routes)
    list_interfaces = Rpc("ListInterfaces", pb.ListInterfacesRequest, pb.Interfaces)
    list_routes = Rpc("ListRoutes", pb.ListRoutesRequest, pb.Routes)
    add_arp_neighbors = Rpc("AddARPNeighbors", pb.AddARPNeighborsRequest, Empty)
