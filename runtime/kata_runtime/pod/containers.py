"""The containers of one sandbox by their ids, and the ids that are taken by containers to come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kata_runtime.container.process import Container, Process
from kata_runtime.errors import AlreadyExistsError, NotFoundError, StateError


class Containers:
    """A table of containers. sandbox_id: for messages."""

    def __init__(self, sandbox_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()

    @property
    def all(self) -> list[Container]:
        """Every container, in the order of creation."""
        return list(self._containers.values())

    @property
    def empty(self) -> bool:
        """Whether there is no container, and none under way."""
        return not self._containers and not self._creating

    def is_last(self, container: Container) -> bool:
        """Whether this is the only one, and no other is under way."""
        return not self._creating and self._containers.keys() <= {container.id}

    def find(self, container_id: str) -> Container | None:
        """A container by its id, or None."""
        return self._containers.get(container_id)

    def container(self, container_id: str) -> Container:
        """A container by its id. Raises NotFoundError, or StateError while it is being created."""
        if (container := self._containers.get(container_id)) is not None:
            return container
        if container_id in self._creating:
            raise StateError(
                f"container {container_id} is still being created: wait until its Create returns"
            )
        raise NotFoundError(f"container {container_id!r} does not exist in sandbox {self._sandbox_id}")

    def process(self, container_id: str, exec_id: str) -> Process:
        """The init process, or an exec. Raises as `container` does, and NotFoundError."""
        container = self.container(container_id)
        if not exec_id:
            return container.init
        try:
            return container.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"exec {exec_id!r} does not exist in container {container_id}") from None

    @contextlib.contextmanager
    def claim(self, container_id: str) -> Iterator[None]:
        """Keep an id while its container is being created. Raises AlreadyExistsError."""
        if container_id in self._containers or container_id in self._creating:
            raise AlreadyExistsError(f"container {container_id} exists already: choose another id")
        self._creating.add(container_id)
        try:
            yield
        finally:
            self._creating.discard(container_id)

    def add(self, container: Container) -> None:
        """Put in a container that was created."""
        self._containers[container.id] = container

    def remove(self, container: Container) -> None:
        """Take out a container that was deleted; idempotent."""
        self._containers.pop(container.id, None)
