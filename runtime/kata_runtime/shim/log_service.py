"""kata.runtime.v1.Log: what this process logs, which `kata-ctl log-level` changes while the sandbox runs."""

from __future__ import annotations

import logging

from kata_agent.ttrpc.server import Handler
from kata_runtime.containerd_api.loglevels_pb2 import LogLevels
from kata_runtime.errors import InvalidRequestError
from kata_runtime.logging import HYPERVISOR, LEVELS, RUNTIME, level_of, set_level

SERVICE, SET_LEVELS = "kata.runtime.v1.Log", "SetLevels"
LOGGERS = {"runtime": RUNTIME, "hypervisor": HYPERVISOR}
"""A field of LogLevels -> the logger that has this level."""

_log = logging.getLogger(__name__)


class LogService:
    """The levels of this process."""

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The methods by service and name."""
        return {(SERVICE, SET_LEVELS): Handler(LogLevels, self.set_levels)}

    async def set_levels(self, request: LogLevels) -> LogLevels:
        """Set the levels that are named, all or none; return those in force.

        Raises:
            InvalidRequestError: there is no such level.
        """
        wanted = {field: level for field in LOGGERS if (level := getattr(request, field))}
        for field, level in wanted.items():
            if level not in LEVELS:
                known = ", ".join(LEVELS)
                raise InvalidRequestError(f"{field} has no log level {level!r}; use one of {known}")
        for field, level in wanted.items():
            _log.info("log level of the %s: %s, was %s", field, level, level_of(LOGGERS[field]))
            set_level(LOGGERS[field], level)
        return LogLevels(**{field: level_of(logger) for field, logger in LOGGERS.items()})
