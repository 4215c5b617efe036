"""A sample of the fault matrix with the real containerd, and that what it looks for is found."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chaos_node
from chaos_node import DEADLY, KILLED, STILL, Machine, Plan, Round, check_events, matrix
from containerd_versions import SYSTEM
from node import Node

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

RUN = Path(__file__).parents[1] / "chaos" / "run.py"
ROUNDS = 6
FOREVER = 1800  # seconds; each round bounds itself


@pytest.mark.timeout(FOREVER)
def test_a_sample_of_faults_under_containerd_leaves_nothing(guest_image: Path) -> None:
    command = [sys.executable, str(RUN), "--containerd", SYSTEM, "--image", str(guest_image)]
    command += ["--rounds", str(ROUNDS), "--seed", "7", "--only", "unikernel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"\d+ faults in the matrix; {ROUNDS} rounds in \d+ s, 0 wrong", done.stdout)


MACHINE = Machine("m", "image", (), (), {"vmm": "qemu"})


def test_each_process_is_killed_and_made_to_stand_still_in_each_operation() -> None:
    plans = {(plan.operation, plan.fault) for plan in matrix([MACHINE], random.Random(1))}
    assert len(plans) == 3 * (5 + 4)
    assert {fault for operation, fault in plans if operation == "kill"} == {
        *(KILLED[name] for name in ("shim", "broker", "vmm", "containerd", "client")),
        *STILL.values(),
    }


def told(*topics: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(topic, {"container_id": "c", **fields}) for topic in topics]


BEGUN = told("create", "start")
EXIT = told("exit", id="c")
DELETE = told("delete")
EXEC = [*told("exec-added", "exec-started", exec_id="e"), *told("exit", id="e")]


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        ([*BEGUN, *EXEC, *EXIT, *DELETE], []),
        (told("create"), []),
        ([*BEGUN, *DELETE], ["c has no exit: ['create', 'start', 'delete']"]),
        ([*BEGUN, *EXEC[:2], *EXIT], ["e has no exit: ['exec-added', 'exec-started']"]),
        ([*told("create"), *EXIT], []),  # containerd tells so of a shim that died before the start
    ],
)
def test_an_exit_that_is_missing_is_found(events: Any, wrong: list[str]) -> None:
    assert check_events(events, whole=True) == wrong
    assert check_events(events, whole=False) == []


@pytest.mark.parametrize(
    "events", [[*BEGUN, *EXIT, *EXIT], [*EXIT, *BEGUN], [*BEGUN, *DELETE, *EXIT], [*BEGUN, *EXEC[::-1]]]
)
def test_events_that_come_twice_or_in_another_order_are_found(events: Any) -> None:
    (sentence,) = check_events(events, whole=False)
    assert "come twice or out of order" in sentence


def test_containerd_tells_an_end_once_more_of_a_shim_that_it_has_lost() -> None:
    events = [*BEGUN, *EXIT, *EXIT, *DELETE]
    assert check_events(events, whole=True, repeated=True) == []
    assert check_events([*BEGUN, *EXIT, *DELETE, *EXIT, *DELETE], whole=True, repeated=True) == []
    assert check_events([*events, *EXIT], whole=True, repeated=True) != []


class Silent(Round):
    """A round whose operations have been played already."""

    def __init__(self, fault: str, *, struck: bool) -> None:
        self.plan = Plan(MACHINE, "start", fault)
        self.seen = chaos_node.Seen(struck=struck)


@pytest.mark.parametrize(
    ("fault", "struck", "operation", "errors", "right"),
    [
        (KILLED["shim"], True, "start", "ttrpc: closed", True),
        (KILLED["shim"], True, "start", "", False),
        (KILLED["shim"], False, "start", "ttrpc: closed", False),
        (STILL["broker"], True, "start", "the broker did not answer", False),
        (KILLED["client"], True, "start", "", True),
        (KILLED["client"], True, "kill", "not found", False),
    ],
)
def test_a_failure_without_a_cause_or_a_word_is_found(
    fault: str, struck: bool, operation: str, errors: str, right: bool
) -> None:
    one = Silent(fault, struck=struck)
    one.seen.errors[operation] = errors
    one._judge(operation, errors)
    assert (one.seen.violations == []) is right
    assert set(DEADLY) < set(KILLED.values())


def test_a_container_that_stays_is_found(node: Node) -> None:
    """What the rounds ask of containerd and of the host sees a container that lives."""
    before = node.leftovers()
    with node.detached("sleep", "3600") as container:
        found = before.settle(patience=0)
        assert {line.partition(" ")[0] for line in found} >= {"path", "cgroup", "process"}
        assert node.status(container) == "RUNNING"
