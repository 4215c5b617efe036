"""Whether a container is a unikernel: by its annotations, or by a file in its image."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.bundle import annotations_of
from kata_runtime.errors import UnsupportedError
from kata_runtime.unikernel.description import FILE, MAX_FILE, PREFIX, Unikernel, from_annotations, from_file

if TYPE_CHECKING:
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.process import Container

_log = logging.getLogger(__name__)


def refuse_unikernel(container: Container) -> None:
    """Refuse a unikernel in a sandbox that runs already. Raises UnsupportedError."""
    if any(key.startswith(PREFIX) and value for key, value in annotations_of(container.spec).items()):
        raise UnsupportedError(
            f"cannot create container {container.id} in a running sandbox: its annotations name a unikernel, "
            "and a unikernel is the only container of its sandbox"
        )


async def find_unikernel(container: Container, broker: Broker) -> Unikernel | None:
    """What the container's annotations or its image say of a unikernel; None when it is a Linux container.

    Raises:
        InvalidRequestError, UnsupportedError: they name one that cannot run.
    """
    unikernel = from_annotations(annotations_of(container.spec))
    if unikernel is None:
        try:
            file = await broker.open_in_image(container.rootfs, FILE, write=False)
        except RequestFailedError:
            return None
        with os.fdopen(file, "rb") as content:
            unikernel = from_file(content.read(MAX_FILE + 1))
    if container.init.paths.terminal:
        raise UnsupportedError(
            f"cannot create container {container.id} with a terminal: it is a unikernel, which has none"
        )
    for key in unikernel.ignored:
        _log.warning("the %s %s has no effect: this runtime does not know it", unikernel.origin, key)
    return unikernel
