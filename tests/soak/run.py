"""Soak: operations on a node's pods, drawn at random, for minutes; then nothing is left, lost or has grown.

One pod lives from the first to the last minute. In it, execs come and go, with output of megabytes too, and
containers; beside it, other pods; containerd ends and comes back. Each operation says itself what is right:
exit statuses, all bytes, one exit event. The memory of the long-lived pod's shim and broker is looked at
meanwhile, and in the end compared with what it was after the first operations. Needs root. Exit status 1:
something was wrong, which is told.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent.parent / "support"
sys.path[:0] = [str(SUPPORT), str(SUPPORT.parent.parent / "examples/quickstart")]

import containerd_versions  # noqa: E402
from kata_runtime.image import builder  # noqa: E402
from node import Client, Events, Node, Pod, Result  # noqa: E402

WARM = 20
"""Operations until memory is what it is to stay: caches are filled by then, and modules loaded."""
GROWTH = 0.05
"""Of memory, that is too much, beyond KIB: the kernel gives memory in pages, malloc in arenas."""
KIB = 512
MIB = 1 << 20
LOOKS = 30
"""Operations between two looks at the memory."""


class WrongError(Exception):
    """Something that an operation found."""


class Soak:
    """What is done to a node and its long-lived pod, and what was seen."""

    def __init__(self, node: Node, pod: Pod, draw: random.Random) -> None:
        self.node, self.pod, self.draw = node, pod, draw
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.curve: list[tuple[int, dict[str, int]]] = []
        self.operations: dict[str, tuple[int, Callable[[], None]]] = {
            "an exec": (12, self.exec),
            "an exec's output of megabytes": (3, self.stream),
            "an exec that is killed": (3, self.killed_exec),
            "a container of the pod": (5, self.container),
            "a container that is attached to": (2, self.attached),
            "a pod": (2, self.other_pod),
            "a restart of containerd": (1, self.restart),
        }

    def step(self) -> None:
        """One operation."""
        weights = [weight for weight, _ in self.operations.values()]
        (name,) = self.draw.choices(list(self.operations), weights)
        try:
            self.operations[name][1]()
        except (WrongError, AssertionError, OSError) as error:
            self.wrong.append(f"{name}, operation {self.done.total()}: {str(error) or repr(error)}")
        self.done[name] += 1
        if self.done.total() == WARM or self.done.total() % LOOKS == 0:
            self.look()

    def look(self) -> None:
        """Take the memory of shim and broker, in KiB."""
        pids = self.node.pids(self.pod.sandbox)
        found = {role: anonymous(pids[role]) for role in ("shim", "broker")}
        self.curve.append((self.done.total(), found))
        print(f"after {self.done.total():5} operations: {found}", file=sys.stderr, flush=True)

    def growth(self) -> list[str]:
        """A line for each process that has grown too much since it was warm."""
        after = [sizes for number, sizes in self.curve if number >= WARM]
        grown = []
        for role, first in after[0].items() if after else ():
            last = after[-1][role]
            if last - first > max(first * GROWTH, KIB):
                grown.append(f"the {role} has grown from {first} to {last} KiB")
        return grown

    # -- operations ----------------------------------------------------------------------------------------

    def _exec(self, *command: str) -> Result:
        argv = ("task", "exec", "--exec-id", secrets.token_hex(4), self.pod.sandbox, *command)
        return self.node.ctr(*argv, check=False)

    def exec(self) -> None:
        """An exec with a status and output of its own."""
        status = self.draw.randrange(120)
        expect(self._exec("sh", "-c", f"echo out{status}; exit {status}"), status, f"out{status}\n")

    def stream(self) -> None:
        """All bytes of a long output, none twice."""
        size = self.draw.randrange(1, 9) * MIB + self.draw.randrange(MIB)
        done = self._exec("sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x")
        if done.returncode or len(done.stdout) != size:
            raise WrongError(f"{len(done.stdout)} of {size} bytes, {done.returncode}: {done.stderr}")

    def killed_exec(self) -> None:
        """An exec that a signal ends tells it."""
        expect(self._exec("sh", "-c", "kill -TERM $$; sleep 100"), 128 + signal.SIGTERM, "")

    def container(self) -> None:
        """A further container of the pod: one exit event, and it is gone afterwards."""
        name = self.node.new_id()
        with Events(self.node) as events:
            expect(self.pod.run("sh", "-c", "echo in; exit 7", container=name), 7, "in\n")
            topics = [topic for topic, _ in events.of(name)]
        if topics.count("exit") != 1:
            raise WrongError(f"{topics}")

    def attached(self) -> None:
        """A client that attaches reads what is written from then on, and the status."""
        script = "trap 'echo told; exit 3' USR1; while :; do sleep 1; done"
        with (
            self.pod.running("sh", "-c", script) as first,
            Client(self.node.command("task", "attach", first.container)) as second,
        ):
            self.node.ctr("task", "kill", "--signal", "USR1", first.container)
            if second.wait() != 3 or first.wait() != 3:
                raise WrongError(f"{second.output!r} {second.errors} {first.errors}")
            if "told" not in first.output + second.output:
                raise WrongError("what it wrote was read by nobody")

    def other_pod(self) -> None:
        """A pod from its start to its end."""
        expect(self.node.run("echo", "whole"), 0, "whole\n")

    def restart(self) -> None:
        """containerd ends, in order or not, and the pod is there afterwards."""
        self.node.containerd.stop(self.draw.choice((signal.SIGTERM, signal.SIGKILL)))
        self.node.containerd.start()
        if (status := self.node.status(self.pod.sandbox)) != "RUNNING":
            raise WrongError(f"the pod is {status}")


def expect(done: Result, status: int, output: str) -> None:
    """Raises WrongError: it came to something else."""
    if (done.returncode, done.stdout) != (status, output):
        raise WrongError(f"{done.returncode} {done.stdout[:200]!r}: {done.stderr.strip()[-500:]}")


def anonymous(pid: int) -> int:
    """Memory of a process that is its own: KiB that are neither a file's nor shared."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def main() -> int:
    """Parse the command line, soak, print the report; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=builder.DEFAULT_OUTPUT, help="of the guest")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--operations", type=int, default=0, help="end after so many, if they come first")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root", file=sys.stderr)
        return 2
    node = Node(containerd_versions.find(containerd_versions.SYSTEM), arguments.image)
    begin = time.monotonic()
    try:
        node.start()
        before = node.leftovers()
        with node.pod() as pod:
            soak = Soak(node, pod, random.Random(arguments.seed))
            while time.monotonic() - begin < arguments.minutes * 60:
                soak.step()
                if soak.done.total() == arguments.operations:
                    break
            soak.look()
        left = before.settle()
    finally:
        node.close()
    return report(soak, left, time.monotonic() - begin)


def report(soak: Soak, left: list[str], took: float) -> int:
    """Print what was done and seen; returns the exit status."""
    print(f"{soak.done.total()} operations in {took / 60:.1f} minutes")
    print("\n".join(f"{count:6} times {name}" for name, count in sorted(soak.done.items())))
    print(
        "memory of its own, KiB:", *(f"    after {number}: {sizes}" for number, sizes in soak.curve), sep="\n"
    )
    wrong = [*soak.wrong, *soak.growth(), *(f"left: {line}" for line in left)]
    print("\n".join(wrong) if wrong else "nothing wrong, left or grown")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
