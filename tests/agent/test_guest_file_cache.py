"""How many shared files the guest remembers: when it forgets, and how soon it looks again."""

from __future__ import annotations

import pytest

from kata_agent.guest.file_cache import Bound, parse_slabs

LIMITS = [16, 1000, 20_000, 1_000_000]


@pytest.mark.parametrize("limit", LIMITS)
def test_files_are_forgotten_long_before_the_limit(limit: int) -> None:
    bound = Bound(limit)
    assert not bound.is_exceeded(limit // 2)
    assert bound.is_exceeded(limit // 2 + 1)


@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_in_use_is_not_forgotten_again_and_again(limit: int) -> None:
    bound = Bound(limit)
    kept = limit * 3 // 4
    bound.learn(kept)
    assert not bound.is_exceeded(kept)
    assert bound.is_exceeded(limit)
    bound.learn(0)
    assert bound.is_exceeded(kept)


def test_the_nearer_the_limit_the_sooner_it_looks() -> None:
    bound = Bound(20_000)
    pauses = [bound.pause(known, 0.001) for known in (0, 5000, 9000, 9999, 20_000)]
    assert pauses == sorted(pauses, reverse=True)
    assert pauses[0] <= 20_000 / 2 / 100_000
    assert min(pauses) == pytest.approx(0.01)


SLABS = """slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>
fuse_request          26     26    152   26    1 : tunables    0    0    0 : slabdata      1      1      0
fuse_inode           345    361    832   19    4 : tunables    0    0    0 : slabdata     19     19      0
inode_cache        10934  10934    608   26    4 : tunables    0    0    0 : slabdata    421    421      0
"""


def test_the_inodes_of_shared_files_are_counted() -> None:
    assert parse_slabs(SLABS, 7) == 345
    assert parse_slabs("", 7) == 7
