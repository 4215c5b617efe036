"""A container that is not wanted any more while it is created."""

from __future__ import annotations

from typing import Any

import pytest

from kata_agent.guest.errors import NotFoundError, StateError
from kata_agent.guest.sandbox import Sandbox
from kata_agent.guest.streams import StreamTable
from kata_agent.protos import agent_pb2


class ContainerDouble:
    """Remembers whether it was removed."""

    removed = False

    def remove(self, _: float) -> None:
        self.removed = True


def test_one_that_is_removed_while_it_is_created_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Any = None
    sandbox = Sandbox(nobody, nobody, StreamTable())
    monkeypatch.setattr(sandbox, "_created", True)
    made = ContainerDouble()

    def create(*_: object) -> ContainerDouble:
        sandbox.remove_container("web")  # from another thread, when its creation takes too long
        assert not made.removed
        return made

    monkeypatch.setattr(sandbox, "_create_container", create)
    monkeypatch.setattr(sandbox.oom, "remove", lambda _: None)
    with pytest.raises(StateError, match="container web was removed while it was created"):
        sandbox.create_container(agent_pb2.CreateContainerRequest(container_id="web"), {})
    assert made.removed
    with pytest.raises(NotFoundError):
        sandbox.container("web")
    with pytest.raises(NotFoundError):
        sandbox.remove_container("web")
