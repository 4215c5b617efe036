"""Numbers and names that host and guest have to agree on."""

from __future__ import annotations

AGENT_PORT = 1024
"""Guest port of the agent's ttrpc services (Kata's own number)."""

STREAM_PORT = 1027
"""Guest port of container stdio as raw streams (Kata's number for passed descriptors)."""

NO_STREAM = 0xFFFFFFFF
"""In place of a stream's number: the process gets /dev/null. All numbers 0: the host will read and write with
calls."""

FEATURE_STREAM_IO = "stream-io"
"""Announced in AgentDetails.extra_features by an agent that serves STREAM_PORT.

The host then opens one stream to that port for each of stdin, stdout and stderr, and puts the numbers by
which the guest knows them into the *_port fields of CreateContainer and ExecProcess.
"""

FEATURE_ROUTE_METRIC = "route-metric"
"""Announced in AgentDetails.extra_features by an agent that honours `Route.metric`."""

UMASK_ANNOTATION = "io.katacontainers.process.umask"
"""Carries process.user.umask, which the protocol's Spec has no field for, as octal digits."""
