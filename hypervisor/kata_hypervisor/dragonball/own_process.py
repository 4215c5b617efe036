"""This process, as the child that the contract calls the VMM."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from kata_hypervisor.host import ExitStatus

NAME = "dragonball"


class OwnProcess:
    """A Child whose end is the machine's end: this process outlives it. kill: ends the machine."""

    def __init__(self, kill: Callable[[str], None]) -> None:
        self.name = NAME
        self.pid = os.getpid()
        self.exited: ExitStatus | None = None
        self.violation = ""
        self._kill = kill
        self._ended = asyncio.Event()

    def end(self, status: ExitStatus) -> None:
        """Say that the machine has ended, and how."""
        self.exited = status
        self._ended.set()

    async def wait(self) -> ExitStatus:
        """See Child."""
        await self._ended.wait()
        assert self.exited is not None
        return self.exited

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """See Child; whatever the signal, the machine ends."""
        self._kill("it was killed")
