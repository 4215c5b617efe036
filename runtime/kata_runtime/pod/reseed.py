"""What copies of one machine must not have in common: random numbers, and the time at which they were saved.

The hostname is the sandbox's, the vsock id and the files are the machine's; these two only the agent can set.
A machine that boots gets the time too.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from kata_agent.protos import agent_pb2

if TYPE_CHECKING:
    from kata_agent.client import AgentClient

ENTROPY = 64
"""Bytes, twice of what the kernel's generator has as its key."""


class Reseed:
    """For one guest. Made before this process is sealed, which cannot ask for random numbers afterwards."""

    def __init__(self) -> None:
        self._entropy = os.urandom(ENTROPY)

    async def give(self, agent: AgentClient) -> None:
        """Let the guest have it, before anything of the pod is in there. Raises RpcError."""
        entropy, self._entropy = self._entropy, b""
        await agent.reseed_random_dev(agent_pb2.ReseedRandomDevRequest(data=entropy))
        await give_time(agent)


async def give_time(agent: AgentClient) -> None:
    """Set the guest's clock: a machine's own tells whole seconds, and they are old. Raises RpcError."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    await agent.set_guest_date_time(agent_pb2.SetGuestDateTimeRequest(Sec=seconds, Usec=rest // 1000))
