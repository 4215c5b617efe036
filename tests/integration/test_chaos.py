"""A sample of the fault matrix (make chaos), and that what it looks for is found."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

import chaos_pod
from chaos_pod import FAULTS, Life, Step, check_events
from kata_runtime.containerd_api import events_pb2
from kata_runtime.errors import RuntimeRoomError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

RUN = Path(__file__).parents[1] / "chaos" / "run.py"
ROUNDS = 60
FOREVER = 1800  # seconds; each round bounds itself


@pytest.mark.timeout(FOREVER)
def test_a_sample_of_the_matrix_leaves_nothing_and_names_what_failed() -> None:
    command = [sys.executable, str(RUN), "--rounds", str(ROUNDS), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) steps, (\d+) faults in the matrix; (\d+) rounds .*, 0 wrong", done.stdout)
    assert found is not None
    steps, faults, rounds = map(int, found.groups())
    assert rounds == ROUNDS
    assert steps >= 50
    assert faults >= 5 * steps


def test_every_kind_of_step_has_its_faults() -> None:
    for side, faults in FAULTS.items():
        assert "caller goes" in faults, side
        assert "shim is killed" in faults, side


async def test_what_is_stuck_lost_or_told_in_no_words_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos_pod, "STUCK", 0.01)
    life = Life(tmp_path, Step("create", "broker", "bind", 1), "fails")

    async def accident() -> None:
        raise KeyError(7)

    async def silent() -> None:
        life.report.struck = True
        raise RuntimeRoomError("it did not work")

    assert not await life.ask("start", asyncio.sleep(1000))
    assert not await life.ask("delete", accident())
    assert not await life.ask("kill", silent())
    assert life.report.violations == [
        "start is stuck",
        "delete failed by accident: KeyError(7)",
        "kill does not say that 'injected into bind': it did not work",
    ]


def event(kind: type[Message], **fields: Any) -> Message:
    return kind(**fields)


START = event(events_pb2.TaskStart, container_id="web")
EXIT = event(events_pb2.TaskExit, container_id="web", id="web")
DELETE = event(events_pb2.TaskDelete, container_id="web", id="")


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([START, EXIT, DELETE], ""),
        ([START, DELETE], "web has 0 exits"),
        ([START, EXIT, EXIT], "web has 2 exits"),
        ([EXIT, START], "the events of web are out of order"),
        ([START, DELETE, EXIT], "the events of web are out of order"),
    ],
)
def test_events_that_are_wrong_are_found(events: list[Message], wrong: str) -> None:
    assert "\n".join(check_events(events)).startswith(wrong)
    assert bool(check_events(events)) is bool(wrong)
