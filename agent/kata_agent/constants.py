"""Numbers and names that host and guest have to agree on."""

from __future__ import annotations

import struct

AGENT_PORT = 1024
"""Guest port of the agent's ttrpc services (Kata's own number)."""

STREAM_PORT = 1027
"""Guest port of container stdio as raw streams (Kata's number for passed descriptors)."""

FORWARD_PORT = 1028
"""Guest port of forwarded connections.

The host sends FORWARD_REQUEST first, and gets FORWARD_ANSWER: the errno of the connect, or 0. What follows
are the connection's bytes.
"""

FORWARD_REQUEST = struct.Struct(">BH")
"""4 or 6, the family of the loopback address that is tried first, and the port."""

FORWARD_ANSWER = struct.Struct(">B")

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

FEATURE_PORT_FORWARD = "port-forward"
"""Announced in AgentDetails.extra_features by an agent that serves FORWARD_PORT."""

UMASK_ANNOTATION = "io.katacontainers.process.umask"
"""Carries process.user.umask, which the protocol's Spec has no field for, as octal digits."""

UNIFIED_ANNOTATION = "io.katacontainers.resources.unified"
"""Carries linux.resources.unified, which the protocol has no field for, as a JSON object of strings."""

MOUNTS_ANNOTATION = "io.katacontainers.volumes.mounts_below"
"""Names paths of the guest, as a JSON list: mounts of the host below a volume, which are mounts there too."""

PID_ANNOTATION = "io.katacontainers.process.pid_namespace_of"
"""Names the container whose process namespace this one joins, in place of one of its own or the sandbox's."""
