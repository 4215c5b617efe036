"""The first serial port, a 16550A whose transmitter is always ready and whose receiver stays empty.

Source: the data sheet of National Semiconductor's PC16550D. The guest's console, from its first line on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kata_hypervisor.dragonball.saved_state import Document, Fields


class Register:
    """Offsets of the registers; some mean something else when they are written."""

    DATA, INTERRUPT_ENABLE, INTERRUPT_ID, LINE_CONTROL = range(4)
    MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH = range(4, 8)
    DIVISOR_HIGH = INTERRUPT_ENABLE
    FIFO_CONTROL = INTERRUPT_ID


TRANSMITTER_EMPTY_ENABLED = 1 << 1
INTERRUPT_ENABLE_MASK = 0x0F
NO_INTERRUPT, TRANSMITTER_EMPTY = 0x01, 0x02
FIFO_ENABLED, FIFO_ID = 1 << 0, 0xC0
DIVISOR_ACCESS = 1 << 7
LOOPBACK = 1 << 4
MODEM_CONTROL_MASK = 0x1F
DATA_TERMINAL_READY, REQUEST_TO_SEND, OUT1, OUT2 = 1 << 0, 1 << 1, 1 << 2, 1 << 3
CLEAR_TO_SEND, DATA_SET_READY, RING, CARRIER = 1 << 4, 1 << 5, 1 << 6, 1 << 7
DATA_READY = 1 << 0
TRANSMITTER_IDLE = 0x60
DIVISOR_9600 = 12

LINE = 512

SAVED = ("enabled", "line_control", "modem_control", "scratch")
"""What is saved besides the two flags, the divisor and a looped byte; each is a register."""


class SerialPort:
    """A port device. write: takes what the guest prints, in pieces. interrupt: pulses the port's line.

    Bytes are collected until a line's end, so that a chatty guest costs one system call for each line.
    """

    def __init__(self, write: Callable[[bytes], None], interrupt: Callable[[], None]) -> None:
        self._write = write
        self._interrupt = interrupt
        self._lock = threading.Lock()
        self._line = bytearray()
        self._looped: int | None = None
        self._enabled = 0
        self._empty_reported = False
        self._fifo = False
        self._line_control = 0
        self._modem_control = 0
        self._scratch = 0
        self._divisor = [DIVISOR_9600, 0]

    def read_port(self, port: int, size: int) -> int:
        """See PortDevice."""
        register = port & 7
        with self._lock:
            if register <= Register.DIVISOR_HIGH and self._line_control & DIVISOR_ACCESS:
                return self._divisor[register]
            return self._read(register)

    def write_port(self, port: int, value: int, size: int) -> None:
        """See PortDevice."""
        register, value = port & 7, value & 0xFF
        with self._lock:
            if register <= Register.DIVISOR_HIGH and self._line_control & DIVISOR_ACCESS:
                self._divisor[register] = value
            else:
                self._store(register, value)

    def flush(self) -> None:
        """Hand on what has no line's end yet."""
        with self._lock:
            self._flush()

    def save(self) -> Document:
        """The state. Half a line is shown as it is, and not part of it."""
        with self._lock:
            self._flush()
            return {
                **{key: getattr(self, f"_{key}") for key in SAVED},
                "divisor": list(self._divisor),
                "fifo": int(self._fifo),
                "empty_reported": int(self._empty_reported),
                "looped": [] if self._looped is None else [self._looped],
            }

    def restore(self, state: Fields) -> None:
        """Take a saved state. Raises SnapshotError."""
        with self._lock:
            for key in SAVED:
                setattr(self, f"_{key}", state.integer(key, 0xFF))
            self._divisor = state.integers("divisor", (2, 2), 0xFF)
            self._fifo = bool(state.integer("fifo", 1))
            self._empty_reported = bool(state.integer("empty_reported", 1))
            self._looped = next(iter(state.integers("looped", (0, 1), 0xFF)), None)
            self._report_empty()  # an interrupt may have been under way

    def _read(self, register: int) -> int:
        match register:
            case Register.DATA:
                value, self._looped = self._looped or 0, None
                return value
            case Register.INTERRUPT_ENABLE:
                return self._enabled
            case Register.INTERRUPT_ID:
                return self._identify()
            case Register.LINE_CONTROL:
                return self._line_control
            case Register.MODEM_CONTROL:
                return self._modem_control
            case Register.LINE_STATUS:
                return TRANSMITTER_IDLE | (DATA_READY if self._looped is not None else 0)
            case Register.MODEM_STATUS:
                return self._modem_status()
            case _:
                return self._scratch

    def _store(self, register: int, value: int) -> None:
        match register:
            case Register.DATA:
                self._transmit(value)
            case Register.INTERRUPT_ENABLE:
                self._enabled = value & INTERRUPT_ENABLE_MASK
                self._report_empty()
            case Register.FIFO_CONTROL:
                self._fifo = bool(value & FIFO_ENABLED)
            case Register.LINE_CONTROL:
                self._line_control = value
            case Register.MODEM_CONTROL:
                self._modem_control = value & MODEM_CONTROL_MASK
            case Register.SCRATCH:
                self._scratch = value
            case _:  # the status registers are read-only
                pass

    def _identify(self) -> int:
        fifo = FIFO_ID if self._fifo else 0
        if self._empty_reported:
            self._empty_reported = False
            return fifo | TRANSMITTER_EMPTY
        return fifo | NO_INTERRUPT

    def _modem_status(self) -> int:
        if not self._modem_control & LOOPBACK:
            return CLEAR_TO_SEND | DATA_SET_READY | CARRIER
        pairs = (
            (REQUEST_TO_SEND, CLEAR_TO_SEND),
            (DATA_TERMINAL_READY, DATA_SET_READY),
            (OUT1, RING),
            (OUT2, CARRIER),
        )
        return sum(seen for driven, seen in pairs if self._modem_control & driven)

    def _transmit(self, value: int) -> None:
        if self._modem_control & LOOPBACK:
            self._looped = value
            return
        self._line.append(value)
        if value == ord("\n") or len(self._line) >= LINE:
            self._flush()
        self._report_empty()

    def _report_empty(self) -> None:
        if self._enabled & TRANSMITTER_EMPTY_ENABLED:
            self._empty_reported = True
            self._interrupt()

    def _flush(self) -> None:
        if self._line:
            self._write(bytes(self._line))
            self._line.clear()
