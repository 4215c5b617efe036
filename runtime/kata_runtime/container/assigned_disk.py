"""A block device of the host whose file system is a volume of a container: `kata_runtime.direct_volumes`."""

from __future__ import annotations

from dataclasses import dataclass

from kata_agent.protos.agent_pb2 import Storage


@dataclass(slots=True)
class AssignedDisk:
    """One that is plugged in and mounted by the guest, and not by the host.

    path: of the volume in the container. device: "MAJOR:MINOR" on the host. write: whether the volume may be
    written to. storage: how the guest mounts it, once, for all containers that have it.
    """

    path: str
    device: str
    write: bool
    storage: Storage

    @property
    def found_by(self) -> str:
        """By what the guest knows the disk, once it is plugged in; as of a BlockNode."""
        return self.storage.source

    @found_by.setter
    def found_by(self, name: str) -> None:
        self.storage.source = name
