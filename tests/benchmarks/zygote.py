"""Benchmark: a unikernel's start with the node's zygote and without, and beside urunc where there is one.

In turn, in one run: the same image by `ctr run`, through containerds that differ in the runtime only.

    output    seconds from `ctr run` to the unikernel's first line
    cpu       CPU seconds until then of containerd and all that it starts, and of the zygote
    memory    proportional set size, in MiB, of the last of so many pods that run at once: of its shim and of
              all that this has started

KATA_TEST_URUNC is a directory with the programs urunc and containerd-shim-urunc-v2; solo5-hvt, which urunc
runs, is that of KATA_TEST_SOLO5_HVT or on PATH. What is quoted of rounds is the median, and in brackets the
least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from results import record
from sandbox import pss_mib

from kata_runtime.broker.cgroups import hierarchies
from patience import PATIENCE
from unikernel import HELLO, build_unikernel
from unikernel_image import BINARY, describe
from unikernel_node import CONFIGURATION, RUNTIME, TABLE, UnikernelNode
from zygote_process import Zygote

GROUP = "kata-benchmark"
CALM = 0.002
"""CPU seconds in half a second, beside what a containerd spends that has nothing to do."""
COLD, WARM, URUNC = "without the zygote", "with the zygote", "urunc"
URUNC_RUNTIME = "io.containerd.urunc.v2"
# The kind of unikernel whose command line urunc passes on as it is; ours reads no kind.
KIND = "mirage"
BUDGETS = {(WARM, COLD, "cpu"): 0.35, (WARM, URUNC, "output"): 1.0, (WARM, URUNC, "cpu"): 1.0}
BUDGET_MIB = 24.0
"""SPECIFICATION.md, "Budgets"."""

Sample = tuple[float, float]
"""Seconds, and CPU seconds."""


@contextmanager
def metered() -> Iterator[Path]:
    """A cgroup that counts CPU time."""
    mounted = hierarchies()
    found = next(one for one in mounted if one.version == 2 or "cpuacct" in one.controllers)
    path = Path(found.mountpoint, GROUP)
    path.mkdir(exist_ok=True)
    yield path
    # Pods leave the one above theirs, because it is not theirs alone.
    for left in [Path(one.mountpoint, GROUP) for one in mounted]:
        deadline = time.monotonic() + 10
        while left.exists() and time.monotonic() < deadline:
            with suppress(OSError):
                left.rmdir()
            time.sleep(0.1)


def spent(group: Path) -> float:
    """CPU seconds of all that is or was in a cgroup and below it."""
    usage = group / "cpuacct.usage"
    if usage.exists():
        return int(usage.read_text()) / 1e9
    return int((group / "cpu.stat").read_text().split()[1]) / 1e6


def await_calm(group: Path, idle: float) -> None:
    """Return when a cgroup has spent next to nothing for a while: what ended in it, has ended.

    idle: CPU seconds in half a second of a containerd that has nothing to do.
    """
    deadline = time.monotonic() + PATIENCE
    before, now = -1.0, spent(group)
    while now - before > CALM + 2 * idle:
        assert time.monotonic() < deadline, "what was ended goes on"
        time.sleep(0.5)
        before, now = now, spent(group)


class DidNotStartError(Exception):
    """A unikernel has said nothing for PATIENCE seconds, or has ended without a word."""


class Contender:
    """A containerd with one runtime."""

    def __init__(self, name: str, node: UnikernelNode, image: str, group: Path, runtime: str) -> None:
        self.name = name
        self.node = node
        self._runtime = runtime
        self._image = image
        self._group = group
        self._clients: dict[str, subprocess.Popen[bytes]] = {}
        (group / "cgroup.procs").write_text(str(node.containerd.pid))
        time.sleep(2)  # it is done with its start
        before = spent(group)
        time.sleep(2)
        self._idle = (spent(group) - before) / 4

    def start(self) -> tuple[str, Sample]:
        """A unikernel that goes on running after its first line; its id, and what it took until then."""
        # Of one name for all containerds of the host: the state of urunc is not below its containerd's.
        container = f"{self.node.root.name}-{self.node.new_id()}"
        options = ["--cgroup", f"/{GROUP}/{container}", "--runtime", self._runtime]
        command = self.node.containerd.command(["run", *options, self._image, container, "hello", "wait"])
        before, begin = spent(self._group), time.monotonic()
        client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert client.stdout is not None
        ready, _, _ = select.select([client.stdout], [], [], PATIENCE)
        line = client.stdout.readline() if ready else b""
        sample = time.monotonic() - begin, spent(self._group) - before
        self._clients[container] = client
        if not line:
            for pid in _processes_of(self.node, container):
                os.kill(pid, signal.SIGKILL)
            client.kill()
            self.end(container)
            raise DidNotStartError(f"{self.name}: {container} has said nothing")
        return container, sample

    def end(self, container: str) -> None:
        """End one; return when no CPU is spent any more: the next sample would count it."""
        self.node.ctr("task", "rm", "--force", container)
        self.node.ctr("container", "rm", container)
        client = self._clients.pop(container)
        client.wait()
        assert client.stdout is not None
        client.stdout.close()
        await_calm(self._group, self._idle)


def memory_of_last(contender: Contender, pods: int) -> float:
    """The proportional set size, in MiB, of the last of so many pods at once."""
    running: list[str] = []
    for attempt in range(2 * pods):
        try:
            running.append(contender.start()[0])
        except DidNotStartError as error:
            if attempt + 1 == 2 * pods:
                raise
            print(f"{error}: another one is started")
        if len(running) == pods:
            break
    found = sum(pss_mib(pid) for pid in _processes_of(contender.node, running[-1]))
    for container in running:
        contender.end(container)
    return found


def _processes_of(node: UnikernelNode, container: str) -> set[int]:
    """A pod's shim, by its arguments, and all processes below it."""
    parents, shims = {}, set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if {container.encode(), str(node.containerd.address).encode()} <= set(words[1:]):
                shims.add(pid)
    client = {pid for pid in shims if b"run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")}
    found = shims - client
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def quoted(values: list[float], digits: int = 2) -> str:
    """The median, the least and the most."""
    least, most = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def measure(contenders: list[Contender], rounds: int) -> dict[str, list[Sample]]:
    """What each took, round by round, in turn. Not counted: a first round, and any where one did not start.

    Raises DidNotStartError: in three times as many rounds as are asked for.
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in contenders}
    number, failed = -1, 0
    while number < rounds:
        try:
            taken = {one.name: _round_of(one) for one in contenders}
        except DidNotStartError as error:
            print(f"{error}: this round is taken again")
            failed += 1
            if failed > 3 * rounds:
                raise
            continue
        number += 1
        for name, sample in taken.items() if number else ():
            samples[name].append(sample)
    return samples


def _round_of(contender: Contender) -> Sample:
    container, sample = contender.start()
    contender.end(container)
    return sample


def show(samples: dict[str, list[Sample]]) -> None:
    """Print what each took, and record the ratios."""
    for name, taken in samples.items():
        seconds, cpu = ([one[index] for one in taken] for index in (0, 1))
        print(f"{name + ':':<20} output {quoted(seconds)} s, cpu {quoted([c * 1e3 for c in cpu], 0)} ms")
    for ours, other in ((WARM, COLD), (WARM, URUNC), (COLD, URUNC)):
        if other in samples:
            ratios(samples, ours, other)


def show_memory(contender: Contender, pods: int) -> None:
    """Measure, print and record it; say so where one of them cannot run so many."""
    name = contender.name
    try:
        mib = memory_of_last(contender, pods)
    except DidNotStartError as error:
        print(f"{name}: no {pods} pods at once: {error}")
        return
    print(f"{name + ':':<20} pod {pods}: {mib:.1f} MiB")
    record(f"memory of pod {pods}, {name}", [mib], unit="MiB", budget=BUDGET_MIB if name == WARM else None)


def ratios(samples: dict[str, list[Sample]], ours: str, other: str) -> None:
    """Print and record one over the other, round by round."""
    pairs = list(zip(samples[ours], samples[other], strict=True))
    output, cpu = ([one[i] / theirs[i] for one, theirs in pairs] for i in (0, 1))
    print(f"{ours} over {other}: output {quoted(output)}, cpu {quoted(cpu)}")
    record(
        f"unikernel's first line, {ours} over {other}", output, budget=BUDGETS.get((ours, other, "output"))
    )
    record(f"CPU until then, {ours} over {other}", cpu, budget=BUDGETS.get((ours, other, "cpu")))


def contenders(stack: ExitStack, directory: Path, group: Path) -> Iterator[Contender]:
    """Ours without and with a zygote, and urunc where it is named."""
    unikernel = build_unikernel(directory, source=HELLO)
    description = describe(binary=BINARY, hypervisor="hvt", unikernelType=KIND, useDMBlock="false")
    files = {"urunc.json": json.dumps(description).encode()}
    table = directory / "configuration.toml"
    table.write_text(CONFIGURATION.format(name="dragonball", table=TABLE))
    zygote = Zygote(configuration=table)
    stack.callback(zygote.close)
    (group / "cgroup.procs").write_text(str(zygote.process.pid))
    nodes = [(COLD, RUNTIME, {"KATA_ZYGOTE": "off"}), (WARM, RUNTIME, zygote.environment)]
    programs = os.environ.get("KATA_TEST_URUNC")
    if programs is not None:
        nodes.append((URUNC, URUNC_RUNTIME, {}))
    for name, runtime, environment in nodes:
        node = UnikernelNode(environment=environment)
        stack.callback(node.close)
        if name == URUNC and programs is not None:
            _install_urunc(Path(programs).resolve(), node.root / "bin")
            stack.callback(_remove_state, node.root.name)
        yield Contender(name, node, node.add_image("hello", unikernel, files), group, runtime)


def _install_urunc(programs: Path, place: Path) -> None:
    """Put urunc where a containerd finds it: its shim is runc's, which runs what is called runc."""
    tender = os.environ.get("KATA_TEST_SOLO5_HVT") or shutil.which("solo5-hvt")
    if tender is None:
        raise SystemExit("urunc runs solo5-hvt: put it on PATH, or name it in KATA_TEST_SOLO5_HVT")
    given = {name: programs / name for name in ("urunc", "containerd-shim-urunc-v2")}
    for name, target in {**given, "runc": programs / "urunc", "solo5-hvt": Path(tender).resolve()}.items():
        (place / name).symlink_to(target)


def _remove_state(prefix: str) -> None:
    """Remove what those of this containerd's have left in runc's directory whose shims were killed."""
    for place in Path("/run/containerd/runc/default").glob(f"{prefix}-*"):
        shutil.rmtree(place, ignore_errors=True)


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print it."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group = stack.enter_context(metered())
        compared = list(contenders(stack, directory, group))
        show(measure(compared, arguments.rounds))
        for one in compared:
            show_memory(one, arguments.pods)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pods", type=int, default=20)
    main(parser.parse_args())
