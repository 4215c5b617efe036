"""The end of a machine in this process, one thread of which may hang: it is said and keeps its files."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from kata_hypervisor.contract import CRASHED
from kata_hypervisor.dragonball import in_process
from kata_hypervisor.dragonball.driver import Dragonball
from kata_hypervisor.dragonball.exits import Crash
from kata_hypervisor.dragonball.own_process import OwnProcess
from kata_hypervisor.host import ExitStatus
from local_host import LocalHost

TABLE: Any = SimpleNamespace(virtio_fs_daemon="", virtio_fs_extra_args=())


class Machine:
    """Its vCPUs have an outcome; its end waits for `may_close`."""

    def __init__(self, outcome: str) -> None:
        self.processors = SimpleNamespace(outcome=outcome, end=lambda _: None)
        self.may_close = threading.Event()
        self.close = self.may_close.wait


async def ended(machine: Machine) -> tuple[Any, Dragonball, list[str]]:
    """The exit of a driver whose guest has ended, and what it has closed by then."""
    driver, closed = Dragonball(TABLE, LocalHost()), list[str]()
    driver._children.ours.callback(closed.append, "ours")
    driver._make_worker()
    driver._own = OwnProcess(lambda _: None)
    driver._guest_ended = asyncio.get_running_loop().create_future()
    driver._guest_ended.set_result(machine.processors.outcome)
    made: Any = machine
    driver._machine = made
    return await driver._supervise(made), driver, closed


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("it powered off", ExitStatus(code=0)),
        (Crash("it crashed with a triple fault"), ExitStatus(signal=CRASHED)),
    ],
)
async def test_a_crash_has_a_status_that_says_so(outcome: str, status: ExitStatus) -> None:
    machine = Machine(outcome)
    machine.may_close.set()
    end, driver, closed = await ended(machine)
    assert (end.status, end.reason) == (status, f"the guest ended: {outcome}")
    assert driver._own is not None
    assert driver._own.exited == status
    assert closed == ["ours"]


async def test_a_thread_that_hangs_ends_nobody_s_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(in_process, "END_PATIENCE", 0.05)
    machine = Machine("it powered off")
    end, _, closed = await ended(machine)
    assert end.status == ExitStatus(code=0)
    assert closed == []  # a thread may still use it
    assert "threads of it hang (of machine" in caplog.text
    machine.may_close.set()
