"""What is left of a PC's chipset: the clock with its memory, the keyboard controller's reset line, sleep.

Sources: the data sheet of Motorola's MC146818; Linux' drivers/rtc/rtc-mc146818-lib.c (what it waits for);
ACPI specification 6.5, 4.8.3.7, sleep control and status registers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kata_hypervisor.dragonball.acpi import SLEEP_TYPE_OFF
from kata_hypervisor.dragonball.layout import RTC, SLEEP_CONTROL

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D, CENTURY = 10, 11, 12, 13, 0x32
DIVIDER_32768 = 0x26
HOURS_24 = 1 << 1
VALID_TIME = 1 << 7
INDEX_MASK = 0x7F

PULSE_RESET = 0xFE
SLEEP_ENABLE = 1 << 5
WAKE_STATUS = 0


class Clock:
    """A port device: the time of day in UTC, in BCD. No alarm; an update is never under way."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._index = 0

    def read_port(self, port: int, size: int) -> int:
        """See PortDevice."""
        if port == RTC:
            return self._index
        fixed = {REGISTER_A: DIVIDER_32768, REGISTER_B: HOURS_24, REGISTER_C: 0, REGISTER_D: VALID_TIME}
        if self._index in fixed:
            return fixed[self._index]
        today = time.gmtime(self._now())
        fields = {
            SECONDS: min(today.tm_sec, 59),
            MINUTES: today.tm_min,
            HOURS: today.tm_hour,
            WEEKDAY: (today.tm_wday + 1) % 7 + 1,
            DAY: today.tm_mday,
            MONTH: today.tm_mon,
            YEAR: today.tm_year % 100,
            CENTURY: today.tm_year // 100,
        }
        tens, ones = divmod(fields.get(self._index, 0), 10)
        return tens << 4 | ones

    @property
    def index(self) -> int:
        """Which register the guest reads next."""
        return self._index

    @index.setter
    def index(self, value: int) -> None:
        self._index = value & INDEX_MASK

    def write_port(self, port: int, value: int, size: int) -> None:
        """See PortDevice; the guest cannot set the host's clock."""
        if port == RTC:
            self.index = value


class KeyboardController:
    """A port device: no keyboard, but the line that resets the processor."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read_port(self, port: int, size: int) -> int:
        """See PortDevice: nothing was typed, and the controller takes commands."""
        return 0

    def write_port(self, port: int, value: int, size: int) -> None:
        """See PortDevice."""
        if value & 0xFF == PULSE_RESET:
            self._reset()


class SleepControl:
    """A port device: ACPI's sleep registers, of which a guest uses power-off."""

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off

    def read_port(self, port: int, size: int) -> int:
        """See PortDevice."""
        return WAKE_STATUS

    def write_port(self, port: int, value: int, size: int) -> None:
        """See PortDevice."""
        off = SLEEP_TYPE_OFF << 2 | SLEEP_ENABLE
        if port == SLEEP_CONTROL and value & off == off:
            self._power_off()
