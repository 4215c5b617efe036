"""The rate limiter of a device, as Cloud Hypervisor's and Firecracker's APIs describe it: two token buckets.

Source: RateLimiter and TokenBucket of both API specifications.
"""

from __future__ import annotations

from typing import Any, Protocol

Json = dict[str, Any]

REFILL_MS = 1000


class Limits(Protocol):
    """The keys of a table that limit a disk: bits and operations of a second, and at once; 0 is no limit."""

    @property
    def disk_rate_limiter_bw_max_rate(self) -> int: ...
    @property
    def disk_rate_limiter_bw_one_time_burst(self) -> int: ...
    @property
    def disk_rate_limiter_ops_max_rate(self) -> int: ...
    @property
    def disk_rate_limiter_ops_one_time_burst(self) -> int: ...


def rate_limiter(limits: Limits) -> Json:
    """The buckets, bandwidth and ops; empty where nothing is limited."""
    buckets = {
        "bandwidth": _bucket(
            _octets(limits.disk_rate_limiter_bw_max_rate), _octets(limits.disk_rate_limiter_bw_one_time_burst)
        ),
        "ops": _bucket(limits.disk_rate_limiter_ops_max_rate, limits.disk_rate_limiter_ops_one_time_burst),
    }
    return {name: bucket for name, bucket in buckets.items() if bucket}


def bandwidth_limiter(rate: int) -> Json:
    """The one bucket of a limit of bits in a second; empty without one."""
    bucket = _bucket(_octets(rate), 0)
    return {"bandwidth": bucket} if bucket else {}


def _octets(bits: int) -> int:
    """The least number of octets with so many bits: a small limit must not become none."""
    return -(-bits // 8)


def _bucket(rate: int, burst: int) -> Json | None:
    if not rate:
        return None
    return {"size": rate, "refill_time": REFILL_MS} | ({"one_time_burst": burst} if burst else {})
