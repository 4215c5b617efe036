"""The bound of what the kernel remembers of shared files: the host's server of files holds each of them open.

A server that may open no more answers "too many open files", to any program and for any file. The kernel
forgets files where memory is short, which on a large guest is never. So it is told to, long before the end.
"""

from __future__ import annotations

import threading
import time

from kata_agent.guest import log

_FASTEST = 100_000
"""Files in a second that a guest may come to know: more than virtiofsd can look up."""

_LONGEST = 10.0  # seconds
_SHARE = 10
"""A look costs at most one part in so many of the time: a machine on which it is slow looks up slowly too."""

_FORGET_FILES = "2"  # proc_sys_vm(5), drop_caches: reclaimable entries and inodes
_INODES = "/proc/sys/fs/inode-nr"
_SLABS = "/proc/slabinfo"


class Bound:
    """When to forget, and when to look again. limit: files that the server may have open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = limit // 2

    def is_exceeded(self, known: int) -> bool:
        """Whether so many files are too many. Half of the limit is for what comes meanwhile."""
        return known > self._most

    def learn(self, kept: int) -> None:
        """Take note of how many could not be forgotten, because they are in use."""
        self._most = max(self._limit // 2, (kept + self._limit) // 2)

    def pause(self, known: int, cost: float) -> float:
        """Seconds in which the guest cannot go beyond it. cost: of a look, in seconds."""
        return min(max((self._most - known) / _FASTEST, _SHARE * cost), _LONGEST)


def keep(limit: int) -> None:
    """Hold the kernel to a server's limit, in a thread of its own."""
    threading.Thread(target=_keep, args=(Bound(limit),), name="file cache", daemon=True).start()


def _keep(bound: Bound) -> None:
    cost = _LONGEST / _SHARE
    while True:
        begin = time.monotonic()
        try:
            known = known_files(bound)
            cost = min(cost, time.monotonic() - begin)  # the others were interrupted
            if bound.is_exceeded(known):
                with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                    file.write(_FORGET_FILES)
                kept = known_files(bound)
                bound.learn(kept)
                log.debug(f"forgot {known - kept} of {known} shared files")
                known = kept
        except OSError as error:
            log.info(f"shared files are not bounded: {error}")
            return
        time.sleep(bound.pause(known, cost))


def known_files(bound: Bound) -> int:
    """How many shared files the kernel remembers, or if that is cheaper to say and few enough, all files."""
    with open(_INODES, encoding="ascii") as file:
        every = int(file.read().split()[0])
    if not bound.is_exceeded(every):
        return every
    with open(_SLABS, encoding="ascii") as file:
        return parse_slabs(file.read(), every)


def parse_slabs(text: str, default: int) -> int:
    """The inodes of FUSE in the text of slabinfo(5); a default where there are none."""
    for line in text.splitlines():
        if line.startswith("fuse_inode "):
            return int(line.split()[1])
    return default
