"""The containers of one sandbox by their ids, and the ids that are taken by containers to come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import anyio

from kata_runtime.container.process import Container, Process
from kata_runtime.errors import AlreadyExistsError, NotFoundError, StateError


class Coming:
    """A container that is being created, as far as it is known. over: it was created, or was not.

    scope: of its creation.
    """

    def __init__(self, container: Container) -> None:
        self.container = container
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()
        self.reason = ""

    def give_up(self, reason: str) -> None:
        """Have its creation undone."""
        self.reason = reason
        self.scope.cancel()


class Containers:
    """A table of containers. sandbox_id: for messages."""

    def __init__(self, sandbox_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._containers: dict[str, Container] = {}
        self._creating: dict[str, Coming] = {}

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

    def coming(self, container_id: str) -> Coming | None:
        """A container that is being created."""
        return self._creating.get(container_id)

    @contextlib.contextmanager
    def claim(self, coming: Container) -> Iterator[None]:
        """Keep the id of a container while that is created, which `Coming.give_up` can end.

        Raises:
            AlreadyExistsError: it is taken. StateError: it was given up.
        """
        container_id = coming.id
        if container_id in self._containers or container_id in self._creating:
            raise AlreadyExistsError(f"container {container_id} exists already: choose another id")
        claimed = self._creating[container_id] = Coming(coming)
        try:
            with claimed.scope:
                yield
            if claimed.scope.cancelled_caught:
                raise StateError(f"cannot create container {container_id}: {claimed.reason}")
        finally:
            del self._creating[container_id]
            claimed.over.set()

    def add(self, container: Container) -> None:
        """Put in a container that was created."""
        self._containers[container.id] = container

    def remove(self, container: Container) -> None:
        """Take out a container that was deleted; idempotent."""
        self._containers.pop(container.id, None)
