"""A virtqueue beside a model in numbers that do not wrap: any order of offers, answers and questions."""

from __future__ import annotations

import struct
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kata_hypervisor.dragonball.virtio.queue import WRITE, Chain, SplitQueue, scatter
from virtqueue_driver import AVAILABLE, BUFFERS, USED, VirtqueueDriver

SIZE = 8
ROOM = 16
"""Bytes of each buffer."""


class Ring(RuleBasedStateMachine):
    """A driver that keeps the rules. offered, answered: how many requests, ever."""

    @initialize(begin=st.sampled_from([0, 5, 0xFFFA, 0xFFFF]), event_index=st.booleans())
    def start(self, begin: int, event_index: bool) -> None:
        self.driver = VirtqueueDriver(SIZE)
        self.driver._offered = begin
        self._set(AVAILABLE + 2, begin)
        self._set(USED + 2, begin)
        self.queue = SplitQueue(self.driver.memory, replace(self.driver.setup, position=begin), event_index)
        self.event_index = event_index
        self.offered = self.taken = self.answered = self.asked = begin
        self.waiting: list[int] = []
        self.out: dict[int, Chain] = {}
        self.answers: dict[int, tuple[int, int]] = {}
        self.event, self.quiet = begin, False
        self._set(AVAILABLE + 4 + 2 * SIZE, begin)

    def _set(self, address: int, word: int) -> None:
        self.driver.memory.write(address, struct.pack("<H", word & 0xFFFF))

    def _get(self, address: int) -> int:
        return int.from_bytes(self.driver.memory.read(address, 2), "little")

    @property
    def free(self) -> list[int]:
        return [one for one in range(SIZE) if one not in self.out and one not in self.waiting]

    # -- the driver ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.free)
    @rule(data=st.data(), length=st.integers(1, ROOM))
    def offer(self, data: st.DataObject, length: int) -> None:
        head = data.draw(st.sampled_from(self.free))
        self.driver.describe(head, BUFFERS + ROOM * head, length, WRITE)
        self.driver.offer_head(head)
        self.waiting.append(head)
        self.offered += 1

    @rule(ahead=st.integers(0, SIZE), quiet=st.booleans())
    def choose_when_to_be_interrupted(self, ahead: int, quiet: bool) -> None:
        self.event, self.quiet = self.answered + ahead, quiet
        self._set(AVAILABLE + 4 + 2 * SIZE, self.event)
        self._set(AVAILABLE, int(quiet))

    # -- the device ----------------------------------------------------------------------------------------

    @rule()
    def take(self) -> None:
        chain = self.queue.pop()
        assert (chain is None) is (not self.waiting)
        if chain is not None:
            assert chain.head == self.waiting.pop(0)
            self.out[chain.head] = chain
            self.taken += 1

    @precondition(lambda self: self.out)
    @rule(data=st.data(), content=st.binary(max_size=ROOM + 4))
    def answer(self, data: st.DataObject, content: bytes) -> None:
        head = data.draw(st.sampled_from(sorted(self.out)))
        chain = self.out.pop(head)
        written = scatter(chain.writable, content)
        assert written == min(len(content), chain.room)
        assert self.driver.memory.read(BUFFERS + ROOM * head, written) == content[:written]
        self.queue.push(chain, written)
        self.answers[self.answered] = (head, written)
        self.answered += 1

    @rule()
    def ask_whether_to_interrupt(self) -> None:
        if self.event_index:
            wanted = self.asked <= self.event < self.answered
        else:
            wanted = not self.quiet and self.asked < self.answered
        assert self.queue.wants_interrupt() is wanted
        self.asked = self.answered

    @rule()
    def rearm(self) -> None:
        assert self.queue.rearm() is bool(self.waiting)
        if self.event_index:
            assert self._get(USED + 4 + 8 * SIZE) == self.taken & 0xFFFF

    @rule()
    def ask_for_more(self) -> None:
        self.queue.ask_for_more()
        if self.event_index:
            assert self._get(USED + 4 + 8 * SIZE) == self.offered & 0xFFFF

    # -- what holds ----------------------------------------------------------------------------------------

    @invariant()
    def every_answer_is_where_the_driver_looks(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.position == self.taken & 0xFFFF
        assert self._get(USED + 2) == self.answered & 0xFFFF
        for number in range(max(self.answered - SIZE, 0), self.answered):
            if number in self.answers:
                place = USED + 4 + 8 * ((number & 0xFFFF) % SIZE)
                assert struct.unpack("<II", self.driver.memory.read(place, 8)) == self.answers[number]


TestRing = Ring.TestCase
TestRing.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
