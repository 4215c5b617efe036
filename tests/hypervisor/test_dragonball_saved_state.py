"""The state file: what was written is read, and nothing else is taken."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.dragonball import saved_state
from kata_hypervisor.dragonball.saved_state import Fields, decode, encode, text_of
from kata_hypervisor.dragonball.serial import SerialPort
from kata_hypervisor.errors import SnapshotError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def sealed(content: bytes, version: int = saved_state.FORMAT) -> bytes:
    """A file with any content, and the right hash."""
    return b"kata machine state %d sha256:%s\n%s" % (version, sha256(content).hexdigest().encode(), content)


def test_what_was_written_is_read() -> None:
    fields = decode(encode({"number": 7, "bytes": text_of(b"abc"), "part": {"list": [{"x": 1}, {"x": 2}]}}))
    assert fields.integer("number", 7) == 7
    assert fields.content("bytes", 3) == b"abc"
    assert [one.integer("x", 2) for one in fields.part("part").parts("list", 2)] == [1, 2]


@given(st.data())
def test_a_changed_file_is_never_taken(data: st.DataObject) -> None:
    whole = encode({"a": 1, "b": "text"})
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    for one in (bytes(changed), whole[:at], whole + b"\0"):
        with pytest.raises(SnapshotError):
            decode(one)


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    for one in (data, sealed(data + b"{")):
        with pytest.raises(SnapshotError):
            decode(one)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no state of a machine"),
        (b"\x7fELF" + bytes(100), "no state of a machine"),
        (sealed(b"{}", 99), "format 99, this version reads 1"),
        (sealed(b"[]"), "no object"),
        (sealed(b"[" * 100000), "damaged"),
        (sealed(b'{"a": ' + b"9" * 5000 + b"}"), "damaged"),
    ],
)
def test_a_refusal_says_why(data: bytes, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        decode(data)


@given(JSON)
def test_a_field_is_of_its_type_or_refused(value: Any) -> None:
    fields = Fields({"x": value})
    reads = (
        lambda: type(fields.integer("x", 5)) is int and 0 <= value <= 5,
        lambda: type(fields.text("x")) is str,
        lambda: len(fields.content("x", 2)) == 2,
        lambda: isinstance(fields.part("x"), Fields),
        lambda: len(fields.parts("x", 1)) == 1,
        lambda: all(type(one) is int and 0 <= one <= 5 for one in fields.integers("x", (1, 2), 5)),
        lambda: all(0 <= a <= 1 and 0 <= b <= 2 for a, b in fields.pairs("x", 3, (1, 2))),
    )
    for read in reads:
        try:
            assert read()
        except SnapshotError as error:
            assert str(error).startswith("it is damaged: x")


@pytest.mark.parametrize(
    ("value", "message"),
    [(True, "no number"), (-1, "no number"), (1.0, "no number"), ("1", "no number"), (None, "no number")],
)
def test_a_number_is_a_number(value: object, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        Fields({"x": value}).integer("x", 10)


def test_a_sentence_names_the_place() -> None:
    fields = decode(sealed(json.dumps({"devices": [{"queues": [{"size": "x"}]}]}).encode()))
    (queue,) = fields.parts("devices", 1)[0].parts("queues", 1)
    with pytest.raises(SnapshotError, match=r"devices\[0\]\.queues\[0\]\.size is no number"):
        queue.integer("size", 1)
    with pytest.raises(SnapshotError, match=r"devices\[0\]\.queues\[0\]\.ready is missing"):
        queue.integer("ready", 1)


class Port:
    """A serial port, what it printed, and its interrupts."""

    def __init__(self) -> None:
        self.output: list[bytes] = []
        self.interrupts = 0
        self.port = SerialPort(self.output.append, self._interrupt)

    def _interrupt(self) -> None:
        self.interrupts += 1


def test_a_serial_port_goes_on() -> None:
    one, other = Port(), Port()
    for register, value in ((3, 0x80), (0, 1), (1, 2), (3, 3), (4, 0x10), (0, 0x41), (7, 9), (1, 2), (2, 1)):
        one.port.write_port(0x3F8 + register, value, 1)
    other.port.restore(decode(encode(one.port.save())))
    assert other.interrupts == 1
    assert [other.port.read_port(0x3F8 + register, 1) for register in (3, 4, 7, 5, 0, 5)] == [
        *(3, 0x10, 9, 0x61, 0x41, 0x60)
    ]
    assert other.port.save() == one.port.save() | {"looped": []}


def test_half_a_line_is_shown_before_it_is_lost() -> None:
    one = Port()
    one.port.write_port(0x3F8, ord("x"), 1)
    one.port.save()
    assert one.output == [b"x"]


@given(st.dictionaries(st.sampled_from([*SerialPort(lambda data: None, lambda: None).save()]), JSON))
def test_a_foreign_serial_port_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError):
        Port().port.restore(Fields({"scratch": 256} | state | {"fifo": 2}))
