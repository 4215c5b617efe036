"""kata.runtime.v1.Debug: what only a test of the confinement asks for. Served where the runtime debugs.

Provoke makes the shim call execve, as code that a guest has brought in would, or, where such calls are only
logged, uname, which does no harm. It answers like any other call; what comes of it is the point. See
`kata-ctl seccomp provoke`.
"""

from __future__ import annotations

import logging
import os

from google.protobuf.empty_pb2 import Empty

from kata_agent.ttrpc.server import Handler
from kata_runtime.errors import UnsupportedError
from kata_runtime.pod.sandbox import Sandbox

SERVICE, PROVOKE = "kata.runtime.v1.Debug", "Provoke"

_log = logging.getLogger(__name__)


class DebugService:
    """The debug service of one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The methods by service and name."""
        return {(SERVICE, PROVOKE): Handler(Empty, self.provoke)}

    async def provoke(self, request: Empty) -> Empty:
        """Make a call that the policy does not allow."""
        booted = self._sandbox.booted
        runtime = booted.configuration.runtime
        if not runtime.enable_debug:
            raise UnsupportedError(
                "cannot provoke the filter: enable_debug is not set; set enable_debug = true in [runtime]"
            )
        if not booted.seal.in_force:
            raise UnsupportedError(f"cannot provoke the filter: {booted.seal.description}")
        if runtime.shim_seccomp == "log":
            os.uname()
            return Empty()
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            _log.info("execve was answered with: %s", error.strerror)
        return Empty()
