"""The network of a pod through CNI's bridge, on QEMU, beside a container of runc's on the same bridge.

    into, out of    a stream from the host into the pod, and out of it
    round trips     one byte there and back, one after the other

Both run at the same time and are measured in turn, with load.c in each. Prints medians, and the ratio of each
round with its spread: above 1 the pod is better. Needs root, a C compiler and CNI's plugins.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/quickstart"))

from results import record

import containerd_versions
from cni_pod import CniPod
from node import IMAGE, RUNTIME, Node

GUEST_IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
LOAD = Path(__file__).with_name("load.c")
PORT = 7000
RUNTIMES = {"kata": RUNTIME, "runc": "io.containerd.runc.v2"}


@dataclass(frozen=True, slots=True)
class Row:
    """A thing measured. command: of load.c. scale: how many of what is counted are one of the unit."""

    name: str
    command: str
    unit: str
    scale: int


ROWS = (
    Row("into the pod", "receive", "MiB/s", 1 << 20),
    Row("out of the pod", "send", "MiB/s", 1 << 20),
    Row("round trips", "echo", "/s", 1),
)


@contextmanager
def serving(node: Node, runtime: str, program: Path) -> Iterator[str]:
    """A container that serves the load in a namespace on the bridge; yields its address."""
    with closing(CniPod(program.parents[1] / "addresses")) as pod:
        pod.settle()
        container = node.new_id()
        mount = f"type=bind,src={program.parent},dst=/mnt,options=rbind:ro"
        options = ("--runtime", runtime, "--with-ns", f"network:{pod.namespace.path}", "--mount", mount)
        node.ctr("run", "--detach", *options, IMAGE, container, "/mnt/load", "serve", str(PORT))
        address = pod.addresses[0].split("/")[0]
        try:
            node.until(lambda: measure(program, address, "echo", 10), "the server")
            yield address
        finally:
            node.discard(container)
            node.until(lambda: container not in node.sandboxes(), "the sandbox's end")


def measure(program: Path, address: str, command: str, milliseconds: int) -> float:
    """How many in a second: bytes or round trips; 0 when nobody answers."""
    argv = [str(program), "ask", address, str(PORT), command, str(milliseconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        return 0
    count, nanoseconds = map(int, done.stdout.split())
    return count / nanoseconds * 1e9


def run(rounds: int, milliseconds: int) -> dict[str, dict[str, list[float]]]:
    """Rates by what is measured and by the runtime's name, a number for each round."""
    found: dict[str, dict[str, list[float]]] = {row.name: {name: [] for name in RUNTIMES} for row in ROWS}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = directory / "load/load"
        program.parent.mkdir()
        subprocess.run(["cc", "-O2", "-static", "-o", program, LOAD], check=True)
        node = Node(containerd_versions.find(containerd_versions.SYSTEM), GUEST_IMAGE)
        stack.callback(node.close)
        node.start()
        addresses = {}
        for name, runtime in RUNTIMES.items():
            addresses[name] = stack.enter_context(serving(node, runtime, program))
        for _ in range(rounds):
            for row in ROWS:
                for name, address in addresses.items():
                    rate = measure(program, address, row.command, milliseconds)
                    assert rate, f"{name} does not answer"
                    found[row.name][name].append(rate)
    return found


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=int, default=2000)
    arguments = parser.parse_args()
    found = run(arguments.rounds, arguments.milliseconds)
    print(f"{arguments.rounds} rounds in turn, {os.cpu_count()} CPUs, Linux {platform.release()}")
    for row in ROWS:
        rates = {name: [rate / row.scale for rate in found[row.name][name]] for name in RUNTIMES}
        ratios = [ours / other for ours, other in zip(rates["kata"], rates["runc"], strict=True)]
        record(f"a pod's network, {row.name}, over runc's", ratios, more=True)
        shown = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in rates.items())
        print(
            f"{row.name:<15} {shown} {row.unit}: ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
