"""The fault matrix: each fault that may happen at each step of a pod's life: nothing stuck, nothing lost.

usage: run.py [--rounds N] [--seed N] [--only TEXT] [--containerd [system|2.x]]

Without --rounds, all of the matrix. Each round is a pod of its own. After it `shim delete` is run as
containerd does it, and the host is looked at: processes, mounts, cgroups, loop devices, entries of /run that
name the pod. With --containerd, the steps are what a person does with ctr, and everything is real.
Needs root. Exit status 1: something was wrong, which is told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import chaos_rounds
import containerd_versions
from chaos_pod import FAULTS, Report, Step, forget_forks, play
from kata_runtime import identity
from kata_runtime.broker import cleanup
from kata_runtime.broker.cgroups import hierarchies
from kata_runtime.identity import SandboxIdentity

_NUMBERS = itertools.count()

SETTLING = 20.0
"""Seconds in which what has been killed may still be seen."""


class Host:
    """What a round could leave on this host: only what names it, for others are at work here too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._disk = {line for line in _lines("/proc/self/mountinfo") if str(root) in line}
        self.identity = SandboxIdentity("/run/chaos.sock", "chaos", root.name, socket_root=str(root))

    def listing(self) -> set[str]:
        """All that is there now."""
        names = (str(self.root), self.identity.directory, self.root.name)
        found = {
            f"path {path}"
            for path in (self.identity.directory, self.identity.socket)
            if os.path.lexists(path)
        }
        found |= {
            f"mount {line}"
            for line in _lines("/proc/self/mountinfo")
            if any(one in line for one in names) and line not in self._disk
        }
        for hierarchy in hierarchies():
            for path, _, _ in os.walk(hierarchy.mountpoint):
                if self.root.name in path:
                    found.add(f"cgroup {path}")
        for directory in Path("/proc").glob("[0-9]*"):
            text = f"{_text(directory / 'cgroup')} {_text(directory / 'cmdline')}"
            if any(name in text for name in names) and int(directory.name) != os.getpid():
                found.add(f"process {directory.name} {_text(directory / 'comm').strip()}")
        loops = Path("/sys/block").glob("loop*/loop/backing_file")
        found |= {f"loop device {path}" for path in loops if any(name in _text(path) for name in names)}
        return found

    def settled(self) -> list[str]:
        """What stays."""
        deadline = time.monotonic() + SETTLING
        while (left := self.listing()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sorted(left)


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def play_round(step: Step | None, fault: str) -> Report:
    """One round, in a process that stands where the shim does; this one is containerd."""
    root = Path(f"/run/kchaos{os.getpid()}n{next(_NUMBERS)}")
    root.mkdir(mode=0o700)
    with small_disk(root):
        return _play_round(root, step, fault)


@contextmanager
def small_disk(root: Path) -> Iterator[None]:
    """A round's files, the broker's too, are on a disk that may become full."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0700,size=4m,nr_inodes=2k", "round", root], check=True
    )
    usual, identity.STATE_ROOT = identity.STATE_ROOT, str(root / "s")
    (root / "s").mkdir(mode=0o711)
    try:
        yield
    finally:
        identity.STATE_ROOT = usual
        subprocess.run(["umount", root], check=True)
        root.rmdir()


def _play_round(root: Path, step: Step | None, fault: str) -> Report:
    host = Host(root)
    descriptors = len(os.listdir("/proc/self/fd"))
    read, write = os.pipe()
    shim = os.fork()
    if shim == 0:
        os.close(read)
        try:
            os.setsid()
            with open(write, "w", encoding="utf-8") as pipe:
                pipe.write(play(root, step, fault).to_json())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(shim, 0)
    report = Report.from_json(text) if text else Report(struck=fault == "shim is killed")
    if not text and not report.struck:
        report.violations.append(f"the shim was ended by status {os.waitstatus_to_exitcode(status)}")
    if not report.struck and step is not None:
        report.violations.append("the step was never reached")
    left = cleanup.clean_up(host.identity, timeout=1)  # as `shim delete`
    report.violations += [f"left after shim delete: {line}" for line in left]
    if fault == "no processes":
        forget_forks(root.name)
    report.violations += [f"left on the host: {line}" for line in host.settled()]
    if len(os.listdir("/proc/self/fd")) != descriptors:
        report.violations.append("containerd has descriptors left")
    return report


def matrix(steps: list[Step]) -> list[tuple[Step, str]]:
    """Every fault of every step."""
    return [(step, fault) for step in dict.fromkeys(steps) for fault in FAULTS[step.side]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=0, help="so many, drawn from the matrix; without it, all"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="rounds whose name has this text")
    parser.add_argument(
        "--containerd",
        nargs="?",
        const=containerd_versions.SYSTEM,
        choices=(containerd_versions.SYSTEM, containerd_versions.SECOND),
        help="rounds with the real containerd, by ctr",
    )
    parser.add_argument("--image", type=Path, help="of the guest, for rounds with containerd")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root", file=sys.stderr)
        return 2
    if arguments.containerd:
        return chaos_rounds.run(
            arguments.containerd, arguments.image, arguments.rounds, arguments.seed, arguments.only
        )
    return run_matrix(arguments.rounds, arguments.seed, arguments.only)


def run_matrix(count: int, seed: int, only: str) -> int:
    """Play the matrix without containerd, or so many rounds of it; returns the exit status."""
    quiet = play_round(None, "")
    if quiet.violations or quiet.errors:
        print(f"without a fault: {quiet.violations} {quiet.errors}")
        return 1
    rounds = [one for one in matrix(quiet.steps) if only in f"{one[0]}: {one[1]}"]
    size = len(rounds)
    if not rounds:
        print(f"no round's name has {only!r}", file=sys.stderr)
        return 2
    if count:
        draw = random.Random(seed)
        rounds = [one for _ in range(-(-count // size)) for one in draw.sample(rounds, size)]
        rounds = rounds[:count]
    begin, seen, wrong = time.monotonic(), Counter[str](), 0
    for number, (step, fault) in enumerate(rounds, 1):
        report = play_round(step, fault)
        seen[f"{step.side} {fault}"] += 1
        if report.violations:
            wrong += 1
            print(
                f"{number}. {step}: {fault}",
                *report.violations,
                json.dumps(report.errors),
                sep="\n    ",
                flush=True,
            )
    took = time.monotonic() - begin
    print(
        f"{len(quiet.steps)} steps, {size} faults in the matrix; "
        f"{len(rounds)} rounds in {took:.0f} s, {wrong} wrong"
    )
    print("\n".join(f"{count:6} {kind}" for kind, count in sorted(seen.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
