"""The fault matrix with the real containerd: rounds of `chaos_node` on one node, and their report."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import containerd_versions
from chaos_node import Plan, Round, Seen, machines, matrix
from kata_runtime.image import builder
from node import Node


def run(version: str, image: Path | None, rounds: int, seed: int, only: str) -> int:
    """Play the matrix, or so many rounds of it; returns the exit status."""
    node = Node(containerd_versions.find(version), image or builder.DEFAULT_OUTPUT)
    try:
        node.start()
        with tempfile.TemporaryDirectory() as directory:
            found = machines(node, Path(directory))
        draw = random.Random(seed)
        every = [plan for plan in matrix(found, draw) if only in str(plan)]
        if not every:
            print(f"no round's name has {only!r}", file=sys.stderr)
            return 2
        plans = list(every)
        while rounds > len(plans):
            plans += [plan for plan in matrix(found, draw) if only in str(plan)]
        if rounds:
            plans = draw.sample(plans, rounds)
        return _play(node, plans, len(every))
    finally:
        node.close()


def _play(node: Node, plans: list[Plan], size: int) -> int:
    usual: dict[str, dict[str, float]] = {}
    for machine in {plan.machine.name: plan.machine for plan in plans}.values():
        quiet = Round(node, Plan(machine), {}).play()
        if quiet.violations or quiet.errors:
            print(f"{machine.name} without a fault: {quiet.violations} {quiet.errors}")
            return 1
        usual[machine.name] = quiet.took
    begin, counts, wrong = time.monotonic(), Counter[str](), 0
    for number, plan in enumerate(plans, 1):
        seen = Round(node, plan, usual[plan.machine.name]).play()
        counts[plan.fault if seen.struck else f"{plan.fault}: too late"] += 1
        if seen.violations:
            wrong += 1
            _tell(number, plan, seen)
    print(
        f"{size} faults in the matrix; {len(plans)} rounds in {time.monotonic() - begin:.0f} s, {wrong} wrong"
    )
    print("\n".join(f"{count:6} {kind}" for kind, count in sorted(counts.items())))
    return 1 if wrong else 0


def _tell(number: int, plan: Plan, seen: Seen) -> None:
    print(f"{number}. {plan}", *seen.violations, json.dumps(seen.errors), sep="\n    ", flush=True)
