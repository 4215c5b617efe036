"""The rollback journal beside a model of it: any order of effects, on a disk that may be full, and a crash.

Whatever happens, the journal on disk has an entry for each effect that was made and not undone, and no other
but those whose undoing could not be written down: undoing these once more does no harm, to forget one does.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kata_runtime.broker import rollback
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.rollback import RollbackJournal

HEADER = {"sandbox": "pod", "namespace": 1}
MOST, MOST_BYTES = 6, 400
REAL_WRITE = os.write


class Journal(RuleBasedStateMachine):
    """A broker that makes effects and undoes them. effects: made and not undone, in order."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="kj-"))
        self.directory = os.open(self.root, os.O_RDONLY)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(rollback, "COMPACT_AFTER", 3)
        self.patch.setattr(rollback, "MAX_ENTRIES", MOST)
        self.patch.setattr(rollback, "MAX_BYTES", MOST_BYTES)
        self.patch.setattr(os, "write", self._write)
        self.room: int | None = None
        self.effects: dict[int, str] = {}
        self.unwritten: set[int] = set()
        self.last = 0
        self.journal = RollbackJournal.create(self.directory, HEADER)

    def _write(self, file: int, data: bytes) -> int:
        """As write(2) on a disk with so many bytes of room; None for enough."""
        if self.room is None:
            return REAL_WRITE(file, data)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = REAL_WRITE(file, data[: self.room])
        self.room -= count
        return count

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.patch.undo()
            os.close(self.directory)
            shutil.rmtree(self.root)

    # -- what happens --------------------------------------------------------------------------------------

    @rule(path=st.text('ab/\n"é', max_size=20))
    def make(self, path: str) -> None:
        sized = sum(len(rollback._line(entry)) for entry in self.journal.entries.values())
        line = len(rollback._line({"n": self.last + 1, "undo": "remove", "path": path}))
        try:
            number = self.journal.push("remove", path=path)
        except RequestRefusedError:
            assert len(self.effects) >= MOST or sized + line > MOST_BYTES
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert self.room is not None
        else:
            assert len(self.effects) < MOST
            assert sized + line <= MOST_BYTES
            assert number > self.last
            self.last = number
            self.effects[number] = path

    @precondition(lambda self: self.effects)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.effects)))
        self.journal.drop(number)
        del self.effects[number]
        if self.room is not None:
            self.unwritten.add(number)

    @rule(number=st.integers(1, 30))
    def undo_what_is_not_there(self, number: int) -> None:
        if number not in self.effects:
            before = (self.root / rollback.NAME).read_bytes()
            self.journal.drop(number)
            assert (self.root / rollback.NAME).read_bytes() == before

    @rule(room=st.integers(0, 120))
    def fill_the_disk(self, room: int) -> None:
        self.room = room

    @rule()
    def free_the_disk(self) -> None:
        self.room = None

    # -- what holds ----------------------------------------------------------------------------------------

    @invariant()
    def whoever_reads_it_undoes_all_that_is_there(self) -> None:
        if not hasattr(self, "journal"):
            return
        loaded = RollbackJournal.load(self.directory)
        assert loaded is not None
        assert loaded.header == HEADER
        assert loaded.unreadable == 0
        found = {number: entry["path"] for number, entry in loaded.entries.items()}
        assert [number for number in found if number in self.effects] == list(self.effects)
        assert {number: path for number, path in found.items() if number in self.effects} == self.effects
        assert found.keys() - self.effects.keys() <= self.unwritten
        assert {n: entry["path"] for n, entry in self.journal.entries.items()} == self.effects

    @invariant()
    def a_torn_last_line_costs_the_last_effect_only(self) -> None:
        if not hasattr(self, "journal"):
            return
        file = self.root / rollback.NAME
        whole = file.read_bytes()
        before = set(RollbackJournal.load(self.directory).entries)  # type: ignore[union-attr]
        file.write_bytes(whole + b'{"n":99,"undo":"rem')
        torn = RollbackJournal.load(self.directory)
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
        assert torn is not None
        assert (set(torn.entries), torn.unreadable) == (before, 0)


TestJournal = Journal.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
