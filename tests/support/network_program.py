"""A broker's network program in name only: its answer, with a queue for a VMM that takes it."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import asdict
from typing import Any

from kata_runtime.network.model import Address, Link, Namespace
from kata_runtime.network.plan import TCFILTER, plan

USER = 2_000_123
ETH0 = Link(2, "eth0", "veth", "02:00:00:00:00:02", 8951, 1, (Address("10.9.0.2", 24),))


class NetworkProgram:
    """What a broker has of it. links: of the pod's namespace. asked: the request."""

    user = USER

    def __init__(self, *links: Link) -> None:
        self.links = links
        self.asked: dict[str, Any] = {}
        self._program: threading.Thread | None = None

    async def network_state(self) -> tuple[list[str], bool]:
        """See Broker."""
        return [link.name for link in self.links], bool(self.links)

    async def attach_network(self, channel: socket.socket) -> None:
        """See Broker."""
        self._program = threading.Thread(target=self._answer, args=(channel.dup(),))
        self._program.start()

    def _answer(self, channel: socket.socket) -> None:
        with channel:
            data = b""
            while piece := channel.recv(1 << 16):
                data += piece
            self.asked = json.loads(data)
            namespace = Namespace(links=self.links)
            each = 0 if self.asked.get("named") else 1
            queues = [os.memfd_create("queue") for _ in range(each * len(self.links))]
            answer = {
                "namespace": namespace.to_json(),
                "plan": asdict(plan(namespace, TCFILTER)),
                "queues": [each] * len(self.links),
            }
            socket.send_fds(channel, [json.dumps(answer).encode()], queues)
            for queue in queues:
                os.close(queue)

    def close(self) -> None:
        """Wait until it has answered."""
        if self._program is not None:
            self._program.join()
