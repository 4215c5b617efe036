"""Volumes in memory: an emptyDir of medium Memory, and a pod's /dev/shm.

The host has made a tmpfs for each. Shared with the guest its pages would be the host's, beside copies of them
in the guest's memory, and would count for no limit in there. So the guest gets a tmpfs of its own, with the
size, mode and owner of the host's: one for each, for all containers of the pod, as long as it lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_agent.protos import agent_pb2
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container import guest_spec
from kata_runtime.container.guest_spec import GUEST_MEMORY, GuestSource
from kata_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.client import Broker
    from kata_runtime.container.process import Container


async def give(container: Container, broker: Broker) -> dict[int, GuestSource]:
    """Give a container the guest's memory where it names the host's; its `memory` gets what the guest mounts.

    Returns where the guest has each, by its index in the specification's mounts.

    Raises:
        UnsupportedError: a volume is of huge pages. BrokerError: the host could not do it.
    """
    given: dict[int, GuestSource] = {}
    for volume in guest_spec.memory_candidates(container.spec):
        try:
            memory = await broker.find_memory(volume.source)
        except RequestFailedError:
            continue  # it is shared as any other, and what is wrong with it is said there
        if memory is None:
            continue
        if memory["kind"] != "tmpfs":
            raise UnsupportedError(
                f"cannot create container {container.id}: its volume {volume.destination} is of huge "
                "pages of the host, and the guest has none; use an emptyDir of medium Memory"
            )
        top = f"{GUEST_MEMORY}/{memory['device']:x}"
        container.memory[volume.index] = _storage(top, memory)
        given[volume.index] = GuestSource(f"{top}/{memory['path']}".rstrip("/"), flags=tuple(memory["flags"]))
    return given


def _storage(top: str, memory: dict[str, Any]) -> agent_pb2.Storage:
    size = [f"size={memory['size']}"] if memory["size"] else []
    owner = [f"mode={memory['mode']:o}", f"uid={memory['user']}", f"gid={memory['group']}"]
    return agent_pb2.Storage(
        driver="ephemeral",
        source="tmpfs",
        fstype="tmpfs",
        options=[*memory["flags"], *owner, *size],
        mount_point=top,
    )
