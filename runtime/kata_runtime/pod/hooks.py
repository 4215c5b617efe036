"""The OCI hooks of a sandbox's first container, in the order of its life. The broker has them run.

Before the guest runs, a hook that fails fails the creation; afterwards, that is a warning. Containers that
come later have no hooks of the host: their config.json is read when the guest may own this process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kata_runtime.broker.errors import BrokerError, RequestFailedError
from kata_runtime.broker.hook_kinds import CREATION, STATUS
from kata_runtime.errors import InvalidRequestError, SandboxError, UnsupportedError

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.bundle import JsonObject

_log = logging.getLogger(__name__)


def kinds_of(spec: JsonObject) -> list[str]:
    """The kinds of hooks of the host that a specification has."""
    hooks = spec.get("hooks")
    return [kind for kind in STATUS if hooks.get(kind)] if isinstance(hooks, dict) else []


def refuse(container_id: str, spec: JsonObject) -> None:
    """Refuse hooks of a container that comes to a running guest. Raises UnsupportedError."""
    if kinds := kinds_of(spec):
        raise UnsupportedError(
            f"cannot create container {container_id}: its config.json has {kinds[0]} hooks, and a pod has "
            "those of its first container only, which are learned before the guest runs; remove "
            f"hooks.{kinds[0]}, or give the hook to the pod's sandbox"
        )


class Hooks:
    """The hooks of one sandbox; none until `learn`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._left: set[str] = set()

    async def learn(self, spec: JsonObject) -> None:
        """Have them learned, where the specification has any. Raises InvalidRequestError."""
        if not kinds_of(spec):
            return
        try:
            self._left = set(await self._broker.learn_hooks())
        except RequestFailedError as error:
            raise InvalidRequestError(str(error)) from None

    async def create(self) -> None:
        """Run those of the creation. Raises SandboxError: one has failed, and none was run after it."""
        for kind in CREATION:
            for sentence in await self._run(kind):
                raise SandboxError("hooks", f"cannot create the container: {sentence}")

    async def warn(self, kind: str) -> None:
        """Run those of a kind whose failure is a warning: "poststart" or "poststop". Once; then nothing."""
        try:
            sentences = await self._run(kind)
        except BrokerError as error:
            sentences = [f"cannot run the {kind} hooks: {error}"]
        for sentence in sentences:
            _log.warning("%s", sentence)

    async def _run(self, kind: str) -> list[str]:
        if kind not in self._left:
            return []
        self._left.discard(kind)
        return await self._broker.run_hooks(kind)
