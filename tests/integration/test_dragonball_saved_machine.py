"""Saving and restoring the in-process machine with guests of a few instructions, on whatever KVM there is."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_configuration import load
from kata_hypervisor import vhost_vsock
from kata_hypervisor.dragonball.machine import Board, Machine
from kata_hypervisor.dragonball.saved_state import Document, Fields, decode, encode
from kata_hypervisor.dragonball.virtio import vsock
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.kvm.vcpus import accept_kicks
from kata_runtime.template import maker
from patience import PATIENCE
from tiny_guest import SPIN, kernel, out_byte, say

pytestmark = pytest.mark.integration

MEMORY = 16 << 20
COUNTER = 0x200000
# mov rax, COUNTER; inc dword [rax]; jmp to it
COUNT = b"\x48\xb8" + COUNTER.to_bytes(8, "little") + b"\xff\x00\xeb\xfc"
JSON: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()) | st.just({})
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory; leaves no thread and no descriptor."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    accept_kicks()  # for good: a kick may reach a thread that was joined and has not yet ended
    state = (len(os.listdir("/proc/self/fd")), threading.active_count())
    yield tmp_path
    while Guest.made:
        Guest.made.pop().machine.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == state


class Guest:
    """A machine with a disk, what it prints, and how it ends."""

    made: ClassVar[list[Guest]] = []

    def __init__(self, vcpus: int = 1, **board: Any) -> None:
        self.output = b""
        self.ended: queue.Queue[str] = queue.Queue()
        self.machine = Machine(Board(vcpus, MEMORY, **board), self._print, self.ended.put)
        self.made.append(self)
        self.machine.add_device(Block(Medium(os.memfd_create("disk", os.MFD_CLOEXEC), 512, read_only=True)))

    def _print(self, data: bytes) -> None:
        self.output += data

    def count(self) -> int:
        return int.from_bytes(self.machine.memory.read(COUNTER, 4), "little")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the guest does."""
        limit = threading.Event()
        for _ in range(int(PATIENCE * 100)):
            if condition():
                return
            limit.wait(0.01)
        raise AssertionError("the guest did not do it")

    def until_count_exceeds(self, number: int) -> None:
        """Wait until the guest's counter is larger."""
        self.until(lambda: self.count() > number)

    def has_written_more(self, size: int) -> bool:
        """Whether the guest has written more bytes to its console than that."""
        return len(self.output) > size


def save(guest: Guest, directory: Path) -> tuple[int, Document]:
    """Hold and save a guest; return its memory's file, and its state as it is read back."""
    guest.machine.processors.hold()
    file = os.open(directory / "memory", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(file, MEMORY)
    return file, guest.machine.save(file)


def boot(guest: Guest, directory: Path, code: bytes) -> None:
    """Let a guest run this code."""
    (directory / "kernel").write_bytes(kernel(code))
    guest.machine.load(directory / "kernel", None, "")
    guest.machine.processors.release()


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("vcpus", [1, 3])
def test_copies_go_on_where_the_machine_was_saved(directory: Path, vcpus: int, private: bool) -> None:
    first = Guest(vcpus)
    boot(first, directory, COUNT)
    first.until(first.count)
    file, state = save(first, directory)
    saved = first.count()
    copies = [Guest(vcpus, content=file, private=private) for _ in range(2)]
    for copy in copies:
        copy.machine.restore(decode(encode(state)))
        assert copy.count() == saved
        copy.machine.processors.release()
        copy.until_count_exceeds(saved)
        copy.machine.close()
    assert os.pread(file, 4, COUNTER) == saved.to_bytes(4, "little")
    first.machine.processors.release()
    first.until_count_exceeds(saved)
    first.machine.close()
    os.close(file)


def test_a_copy_of_a_copy_has_its_own_memory_or_none(directory: Path) -> None:
    first = Guest()
    boot(first, directory, COUNT)
    file, state = save(first, directory)
    first.machine.close()
    shared, own = (Guest(content=file, private=private) for private in (True, False))
    for copy in (shared, own):
        copy.machine.restore(Fields(state))
        copy.machine.processors.release()
        copy.machine.processors.hold()
    with pytest.raises(SnapshotError, match="runs on pages of the template that it was started from"):
        shared.machine.save(file)
    own.machine.save(file)
    for copy in (shared, own):
        copy.machine.close()
    os.close(file)


def test_an_access_that_was_under_way_is_completed(directory: Path) -> None:
    """A guest that only writes to ports is held in the middle of one; its copy writes what comes next."""
    digits = b"".join(out_byte(0x3F8, ord("0") + number) for number in range(10)) + out_byte(0x3F8, 10)
    back = bytes([0xE9]) + (-len(digits) - 5).to_bytes(4, "little", signed=True)
    first = Guest()
    boot(first, directory, digits + back)
    for _ in range(10):
        seen = len(first.output)
        first.until(partial(first.has_written_more, seen))
        first.machine.processors.hold()
        first.machine.processors.release()
    file, state = save(first, directory)
    copy = Guest(content=file)
    copy.machine.restore(Fields(state))
    copy.machine.processors.release()
    copy.until(lambda: len(copy.output) > 100)
    for guest in (first, copy):
        guest.machine.close()
    whole = first.output + copy.output
    assert whole == (b"0123456789\n" * (len(whole) // 11 + 1))[: len(whole)]
    os.close(file)


def test_a_damaged_state_is_refused_and_leaves_nothing(directory: Path) -> None:
    first = Guest(2)
    boot(first, directory, COUNT)
    file, state = save(first, directory)
    first.machine.close()
    places = list(_places(state))

    @given(st.sampled_from(places), JSON)
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def damage(place: tuple[Any, ...], value: Any) -> None:
        damaged = decode(encode(_changed(state, place, value)))
        copy = Guest(2, content=file)
        try:
            copy.machine.restore(damaged)
        except SnapshotError as error:
            assert str(error)
        finally:
            copy.machine.close()

    damage()
    os.close(file)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        if len(place) < 4:
            yield from _places(inner, (*place, key))


def _changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = _changed(value[place[0]], place[1:], new)
    return copy


def test_another_number_of_processors_is_refused(directory: Path) -> None:
    first = Guest(2)
    boot(first, directory, COUNT)
    file, state = save(first, directory)
    first.machine.close()
    copy = Guest(1, content=file)
    with pytest.raises(SnapshotError, match="processors is no list of 1"):
        copy.machine.restore(Fields(state))
    copy.machine.close()
    os.close(file)


def test_the_process_that_makes_a_template_is_sealed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guest that has no agent, and a memfd instead of vhost-vsock; everything else is as it is."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a broker")

    async def reach(configuration: object, machine: object) -> None:
        os.stat("/")

    (directory / "kernel").write_bytes(kernel(say(b"hello\n") + SPIN))
    (directory / "configuration.toml").write_text(CONFIGURATION.format(directory / "kernel"))
    configuration = load(directory / "configuration.toml", check_host=False, source="test", annotations={})
    monkeypatch.setattr(vsock.Socket, "connect", lambda device, context: None)
    monkeypatch.setattr(vhost_vsock, "open_device", lambda: (os.memfd_create("vsock", os.MFD_CLOEXEC), 3))
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inherited = (log, *os.openpty())  # as who starts kata-ctl gives them to it
    for function, call in ((_nothing, ""), (reach, "newfstatat")):
        monkeypatch.setattr(maker, "_wait_for_agent", function)
        made = directory / function.__name__
        made.mkdir(mode=0o700)
        reason = maker.make(configuration, made)
        assert call in reason
        assert bool(reason) is bool(call)
    assert sorted(path.name for path in (directory / "_nothing").iterdir()) == ["memory", "state"]
    for descriptor in inherited:
        os.close(descriptor)


async def _nothing(configuration: object, machine: object) -> None:
    """There is no agent to wait for."""


CONFIGURATION = """
[hypervisor.dragonball]
kernel = "{0}"
initrd = "{0}"
default_memory = 128
[hypervisor.dragonball.factory]
enable_template = true
[runtime]
hypervisor_name = "dragonball"
agent_name = "kata"
[agent.kata]
"""
