"""The network of pods through CNI's bridge, of several machines at the same time, on one bridge.

    into, out of    a stream from the host into the pod, and out of it; or two of them at the same time
    round trips     one byte there and back, one after the other

    make bench        a pod on QEMU beside a container of runc's
    make bench-rig    a pod in the in-process machine beside pods on QEMU (with vhost-net and one queue, with
                      two, and without) and beside runc's

All run at the same time and are measured in turn, with load.c in each. Prints medians in Markdown, and the
ratio of each round with its spread: above 1 the first of them is better. Needs root, a C compiler and CNI's
plugins.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/quickstart"))

from report import number
from results import record

import containerd_versions
import driver_configuration
from cni_pod import CniPod
from node import IMAGE, RUNTIME, Node
from patience import PATIENCE

GUEST_IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
LOAD = Path(__file__).with_name("load.c")
PORT = 7000
SIZE = {"default_vcpus": 2, "default_memory": 512}
"""Of machines that are compared with each other: a second queue is used by a second processor only."""

RUNC = ("--runtime", "io.containerd.runc.v2")

Options = Mapping[str, tuple[str, ...]]
"""What `ctr run` is told, by the name of what it then runs in; all are compared with the first."""

Rates = Mapping[str, Mapping[str, Sequence[float]]]
"""By what is measured and what it runs in, a number for each round."""


class StoodStillError(Exception):
    """A machine that answered does so no longer: those under two emulations do that now and then."""


@dataclass(frozen=True, slots=True)
class Row:
    """A thing measured. command: of load.c. scale: how many of what is counted are one of the unit."""

    name: str
    command: str
    unit: str
    scale: int
    streams: int = 1


ROWS = (
    Row("into the pod", "receive", "MiB/s", 1 << 20),
    Row("out of the pod", "send", "MiB/s", 1 << 20),
    Row("into the pod, two streams", "receive", "MiB/s", 1 << 20, streams=2),
    Row("out of the pod, two streams", "send", "MiB/s", 1 << 20, streams=2),
    Row("round trips", "echo", "/s", 1),
)


def beside_runc(_node: Node) -> Options:
    """A pod as it is configured when nothing is, and runc."""
    return {"kata": ("--runtime", RUNTIME), "runc": RUNC}


def machines(node: Node) -> Options:
    """Pods of one size in each machine that the host's KVM runs, and runc."""
    files = {
        "dragonball": driver_configuration.write("dragonball", node, GUEST_IMAGE, **SIZE),
        "QEMU, vhost-net": node.configuration("vhost", **SIZE),
        "QEMU, vhost-net, 2 queues": node.configuration("queues", network_queues=2, **SIZE),
        "QEMU without": node.configuration("without", disable_vhost_net=True, **SIZE),
    }
    pods = {name: ("--runtime", RUNTIME, "--runtime-config-path", str(file)) for name, file in files.items()}
    return {**pods, "runc": RUNC}


@contextmanager
def serving(node: Node, chosen: Sequence[str], program: Path) -> Iterator[str]:
    """A container that serves the load in a namespace on the bridge; yields its address."""
    with closing(CniPod(program.parents[1] / "addresses")) as pod:
        pod.settle()
        container = node.new_id()
        mount = f"type=bind,src={program.parent},dst=/mnt,options=rbind:ro"
        options = (*chosen, "--with-ns", f"network:{pod.namespace.path}", "--mount", mount)
        node.ctr("run", "--detach", *options, IMAGE, container, "/mnt/load", "serve", str(PORT))
        address = pod.addresses[0].split("/")[0]
        try:
            node.until(lambda: measure(program, address, ROWS[-1], 10), "the server")
            yield address
        finally:
            node.discard(container)
            node.until(lambda: container not in node.sandboxes(), "the sandbox's end")


def measure(program: Path, address: str, row: Row, milliseconds: int) -> float:
    """How many in a second, of all streams together: bytes or round trips; 0 when one has no answer.

    Raises subprocess.TimeoutExpired when one begins and does not end.
    """
    argv = [str(program), "ask", address, str(PORT), row.command, str(milliseconds)]
    asking = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(row.streams)
    ]
    try:
        answers = [process.communicate(timeout=PATIENCE)[0] for process in asking]
    finally:
        for process in asking:
            process.kill()
    if any(process.returncode for process in asking):
        return 0
    pairs = [map(int, answer.split()) for answer in answers]
    return sum(count / nanoseconds * 1e9 for count, nanoseconds in pairs)


def measure_round(
    program: Path, addresses: Mapping[str, str], milliseconds: int
) -> dict[tuple[Row, str], float]:
    """Every row of each that runs, in the order of their addresses."""
    rates = {}
    for row in ROWS:
        for name, address in addresses.items():
            try:
                rates[row, name] = measure(program, address, row, milliseconds)
            except subprocess.TimeoutExpired as error:
                raise StoodStillError(f"{name} stands still, {row.name}") from error
    return rates


def run(choose: Callable[[Node], Options], rounds: int, milliseconds: int) -> Rates:
    """Let them all run, and measure in turn; each round begins with another.

    A round in which a machine stands still is the last one, and does not count.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = directory / "load/load"
        program.parent.mkdir()
        subprocess.run(["cc", "-O2", "-static", "-o", program, LOAD], check=True)
        node = Node(containerd_versions.find(containerd_versions.SYSTEM), GUEST_IMAGE)
        stack.callback(node.close)
        node.start()
        addresses = {}
        for name, options in choose(node).items():
            print(f"starting: {name}", file=sys.stderr, flush=True)
            addresses[name] = stack.enter_context(serving(node, options, program))
        names = list(addresses)
        found: dict[str, dict[str, list[float]]] = {row.name: {name: [] for name in names} for row in ROWS}
        for done in range(rounds):
            print(f"round {done + 1}", file=sys.stderr, flush=True)
            turn = done % len(names)
            order = names[turn:] + names[:turn]
            try:
                rates = measure_round(program, {name: addresses[name] for name in order}, milliseconds)
            except StoodStillError as error:
                if not done:
                    raise
                print(f"{error}: {done} rounds count", file=sys.stderr, flush=True)
                break
            for (row, name), rate in rates.items():
                assert rate, f"{name} does not answer"
                found[row.name][name].append(rate / row.scale)
    return found


def ratios(rates: Mapping[str, Sequence[float]], name: str, other: str) -> list[float]:
    """Round by round, how many times as good one is as another."""
    return [ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True)]


def markdown(found: Rates) -> str:
    """The table."""
    first, *others = next(iter(found.values()))
    lines = [
        f"| what | {first} | {' | '.join(others)} | {' | '.join(f'{first} to {name}' for name in others)} |",
        "|---" * (2 + 2 * len(others)) + "|",
    ]
    for row in ROWS:
        rates = found[row.name]
        cells = [f"{number(statistics.median(rates[name]))} {row.unit}" for name in (first, *others)]
        for name in others:
            values = ratios(rates, first, name)
            cells.append(f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=int, default=2000)
    parser.add_argument("--machines", action="store_true", help="compare machines, on a KVM")
    arguments = parser.parse_args()
    choose = machines if arguments.machines else beside_runc
    found = run(choose, arguments.rounds, arguments.milliseconds)
    for name, rates in found.items():
        first, *others = rates
        for other in others:
            record(f"a pod's network, {name}, over {other}'s", ratios(rates, first, other), more=True)
    done = len(next(iter(found[ROWS[0].name].values())))
    print(f"{done} rounds in turn, {os.cpu_count()} CPUs, Linux {platform.release()}\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
