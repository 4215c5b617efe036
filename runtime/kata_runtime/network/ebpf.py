"""An assembler for small eBPF programs, with labels. Sources: Documentation/bpf/standardization, linux/bpf.h.

Only what `spoof_protection` uses. Registers are numbers: 0 the result, 1 to 5 the arguments of a call, which
a call changes, 6 to 9 kept over calls, 10 the end of the stack.
"""

from __future__ import annotations

import struct
import sys

_INSTRUCTION = struct.Struct("=BBhi")
_MOVE, _MOVE_REGISTER, _ADD, _ADD_REGISTER, _SHIFT_LEFT, _AND = 0xB7, 0xBF, 0x07, 0x0F, 0x67, 0x57
_LOAD_64 = 0x18
_LOADS = {1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}
_JUMP, _CALL, _EXIT = 0x05, 0x85, 0x95
_EQUAL_32, _NOT_EQUAL_32, _NOT_EQUAL_REGISTER = 0x16, 0x56, 0x5D


class Assembler:
    """A program that grows; `code` when it is whole."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}
        self._names = 0

    def unique(self, name: str) -> str:
        """A label that nobody else has."""
        self._names += 1
        return f"{name}{self._names}"

    def label(self, name: str) -> None:
        """The next instruction's name."""
        self._labels[name] = len(self._code)

    def move(self, target: int, value: int) -> None:
        """target = value, of 32 bits."""
        self._add(_MOVE, target, value=value)

    def copy(self, target: int, source: int) -> None:
        """target = source, both registers."""
        self._add(_MOVE_REGISTER, target, source)

    def add(self, target: int, value: int) -> None:
        """target += value."""
        self._add(_ADD, target, value=value)

    def add_register(self, target: int, source: int) -> None:
        """target += source."""
        self._add(_ADD_REGISTER, target, source)

    def shift_left(self, target: int, bits: int) -> None:
        """target <<= bits."""
        self._add(_SHIFT_LEFT, target, value=bits)

    def mask(self, target: int, data: bytes) -> None:
        """Keep of a register the bits of up to four bytes of memory."""
        self._add(_AND, target, value=_as_loaded(data))

    def constant(self, target: int, data: bytes) -> None:
        """target = eight bytes as they are in memory."""
        low, high = struct.unpack("=ii", data if sys.byteorder == "little" else data[4:] + data[:4])
        self._add(_LOAD_64, target, value=low)
        self._add(0, 0, value=high)

    def load(self, target: int, base: int, offset: int, size: int) -> None:
        """target = `size` bytes at base + offset."""
        self._add(_LOADS[size], target, base, offset)

    def call(self, helper: int) -> None:
        """Call a helper of the kernel."""
        self._add(_CALL, 0, value=helper)

    def jump(self, label: str) -> None:
        """Go on at a label, which comes later."""
        self._jump(_JUMP, 0, label)

    def jump_if(self, register: int, data: bytes, label: str) -> None:
        """Jump where a register has the value of up to four bytes of memory."""
        self._jump(_EQUAL_32, register, label, value=_as_loaded(data))

    def jump_unless(self, register: int, data: bytes, label: str) -> None:
        """Jump where it has another value."""
        self._jump(_NOT_EQUAL_32, register, label, value=_as_loaded(data))

    def jump_unless_same(self, one: int, other: int, label: str) -> None:
        """Jump where they are not."""
        self._jump(_NOT_EQUAL_REGISTER, one, label, source=other)

    def leave(self, result: int) -> None:
        """End with a result."""
        self.move(0, result)
        self._add(_EXIT, 0)

    def code(self) -> bytes:
        """The instructions' bytes. Raises ValueError: a jump is too far for an instruction."""
        for place, label in self._jumps:
            kind, target, source, _, value = self._code[place]
            distance = self._labels[label] - place - 1
            if not 0 <= distance < 1 << 15:
                raise ValueError(f"a jump over {distance} instructions")
            self._code[place] = kind, target, source, distance, value
        return b"".join(
            _INSTRUCTION.pack(kind, target | source << 4, offset, value)
            for kind, target, source, offset, value in self._code
        )

    def _add(self, kind: int, target: int, source: int = 0, offset: int = 0, value: int = 0) -> None:
        self._code.append((kind, target, source, offset, value))

    def _jump(self, kind: int, register: int, label: str, source: int = 0, value: int = 0) -> None:
        self._jumps.append((len(self._code), label))
        self._add(kind, register, source, value=value)


def _as_loaded(data: bytes) -> int:
    """What a load of these bytes gives, as the signed number that an instruction holds."""
    value = int.from_bytes(data, sys.byteorder)
    return value - (1 << 32) if value >= 1 << 31 else value
