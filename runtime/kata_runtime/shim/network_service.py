"""kata.runtime.v1.Network: what the guest says of its network, for `kata-ctl network`.

The methods and their messages are those of the agent's protocol (grpc.AgentService of agent.proto).
"""

from __future__ import annotations

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.server import Handler
from kata_runtime.pod.sandbox import Sandbox

SERVICE = "kata.runtime.v1.Network"
LIST_INTERFACES, LIST_ROUTES = "ListInterfaces", "ListRoutes"


class NetworkService:
    """The network service of one sandbox. Its methods raise SandboxError unless the sandbox runs."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The methods by service and name."""
        return {
            (SERVICE, LIST_INTERFACES): Handler(agent_pb2.ListInterfacesRequest, self.list_interfaces),
            (SERVICE, LIST_ROUTES): Handler(agent_pb2.ListRoutesRequest, self.list_routes),
        }

    async def list_interfaces(self, _: agent_pb2.ListInterfacesRequest) -> agent_pb2.Interfaces:
        """The guest's interfaces with their addresses."""
        async with self._sandbox.asked_to("list the guest's interfaces") as guest:
            return await guest.list_interfaces()

    async def list_routes(self, _: agent_pb2.ListRoutesRequest) -> agent_pb2.Routes:
        """The guest's routes."""
        async with self._sandbox.asked_to("list the guest's routes") as guest:
            return await guest.list_routes()
