"""Points in time as protobuf carries them."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(nanoseconds: int) -> Timestamp:
    """A protobuf timestamp from nanoseconds since the epoch."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
