"""Reading the OCI specification of a bundle through the broker, which holds it to the sandbox."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.bundle import JsonObject, parse_spec
from kata_runtime.errors import InvalidRequestError


async def load_spec(bundle: str, read: Callable[[str], Awaitable[bytes]]) -> JsonObject:
    """The OCI runtime specification of a bundle directory. read: gives the content of its config.json.

    Raises:
        InvalidRequestError: config.json is missing, too large, not JSON, or not what the specification says.
        UnsupportedError: it describes something that cannot run in a Linux virtual machine.
    """
    try:
        raw = await read(bundle)
    except RequestFailedError as error:
        raise InvalidRequestError(str(error)) from None
    return parse_spec(raw, os.path.join(bundle, "config.json"))
