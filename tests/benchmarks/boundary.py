"""Benchmark of the boundary: CPU time that it adds to a pod's start, by stage, and to a monitor's command.

Real pods on QEMU are started, each process of which counts what it spends in the functions that confine the
pod (`boundary_meter`): own filters, users, namespaces and roots, the verification, what shim and broker give
up. The ratio is to what the shim and the broker spend on the same start for everything else, up to the seal.
What QEMU and virtiofsd spend after their exec is not counted.

A command of the monitor goes through the broker's `Monitor`, in a process of its own, and beside it directly
to the same program, which plays QEMU. Budgets: SPECIFICATION.md. Machines are noisy: quote least and median.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import boundary_meter
from results import record

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor import registry, virtiofsd
from kata_hypervisor.qemu import allowlist
from kata_hypervisor.seccomp import filter as kernel
from kata_runtime.broker.event_loop import EventLoop
from kata_runtime.broker.monitor import CommandFilter, Monitor
from oci_bundle import make_process, make_spec
from shim_harness import Lab

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
BUDGET_MS, COMMAND_BUDGET_MS = 25.0, 1.0
COMMANDS = 500
IMPORTED = "from kata_runtime.shim.launcher import main\n"


def measured_launcher(lab: Lab, results: Path) -> Path:
    """The launcher of a pod that counts."""
    text = lab.launcher.read_text()
    assert IMPORTED in text
    begin = (
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        f"import boundary_meter\n\nboundary_meter.install({str(results)!r})\n"
    )
    path = lab.directory / f"{lab.launcher.name}-measured"
    path.write_text(text.replace(IMPORTED, begin + IMPORTED))
    path.chmod(0o755)
    return path


async def measure_start(lab: Lab) -> dict[str, float]:
    """Milliseconds by name, of one pod's start."""
    results = lab.directory / "boundary"
    boundary_meter.create(str(results))
    name = lab.new_id("boundary")
    launcher = measured_launcher(lab, results)
    environment = {"KATA_CONF_FILE": str(lab.configure("measured", shim_seccomp="log"))}
    spec = make_spec(make_process("sleep", "1000"))
    shim = await lab.start_shim(name, spec, launcher=launcher, environment=environment)
    process = await shim.create(container_id=name)
    await process.start()
    found = boundary_meter.read(str(results)) | {boundary_meter.INSTALLED: measure_install()}
    await process.kill(9)
    await process.wait()
    await process.delete()
    await shim.close()
    for total in boundary_meter.TOTALS:
        if not found[total]:
            raise RuntimeError(f"nothing was counted as {total!r}: the function that ends it was not called")
    return found


def measure_install() -> float:
    """CPU milliseconds of putting on the filters of QEMU and virtiofsd, each in a process of its own."""
    values: dict[str, Any] = {"kernel": IMAGE / "vmlinuz", "accelerator": "tcg"}
    table = QemuHypervisor(**values)
    return sum(_install(made.code) for made in (allowlist.build(table), virtiofsd.wrapper()))


def _install(code: bytes) -> float:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        begin = time.process_time_ns()
        kernel.install(code, all_threads=False, listener=False)
        os.write(writer, str((time.process_time_ns() - begin) / 1e6).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return float(text)


def measure_command() -> tuple[list[float], list[float]]:
    """Milliseconds of commands that the broker passes, and of as many that go to the VMM directly."""
    commands = registry.info_of("qemu").monitor_commands
    asked = json.dumps({"execute": "cont", "id": 1}).encode()
    vmm, to_vmm = socket.socketpair()
    children = [_fork(lambda: _play_vmm(vmm), to_vmm)]
    try:
        direct = _ask(to_vmm, asked)
        loop = EventLoop()
        monitor = Monitor(to_vmm, CommandFilter(commands), loop, None, _stop)
        with socket.socket(fileno=monitor.hand_over()) as shim:
            children.append(_fork(lambda: _run(loop), shim))
            brokered = _ask(shim, asked)
        monitor.close()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        vmm.close()
    return brokered, direct


def _fork(work: object, other: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            other.close()
            assert callable(work)
            work()
        finally:
            os._exit(1)
    return pid


def _play_vmm(end: socket.socket) -> None:
    while end.recv(4096):
        end.send(b'{"return": {}, "id": 1}\r\n')


def _run(loop: EventLoop) -> None:
    while True:
        loop.run_once(None)


def _stop(sentence: str) -> None:
    raise RuntimeError(sentence)


def _ask(end: socket.socket, command: bytes) -> list[float]:
    spent = []
    for _ in range(COMMANDS):
        begin = time.perf_counter_ns()
        end.send(command)
        if not end.recv(4096).endswith(b"\r\n"):
            raise RuntimeError("the monitor does not answer")
        spent.append((time.perf_counter_ns() - begin) / 1e6)
    return spent


def kept(value: float, budget: float) -> str:
    """Whether a budget is kept, in words."""
    return f"budget {budget:g} ms, {'kept' if value <= budget else '**missed**'}"


def report(rounds: list[dict[str, float]]) -> list[str]:
    """A line for each stage, and one for all of them."""
    lines = [f"CPU that the boundary adds to a pod's start, ms, {len(rounds)} rounds"]
    lines.append(f"{'':<42}{'least':>8}{'median':>8}{'most':>8}")
    sums = [sum(found[stage] for stage in boundary_meter.STAGES) for found in rounds]
    columns = {stage: [found[stage] for found in rounds] for stage in boundary_meter.STAGES}
    for name, values in {**columns, "all of it": sums}.items():
        row = (min(values), statistics.median(values), max(values))
        lines.append(f"{name:<42}" + "".join(f"{value:>8.2f}" for value in row))
    rest = [
        sum(found[total] for total in boundary_meter.TOTALS) - spent
        for found, spent in zip(rounds, sums, strict=True)
    ]
    ratios = [spent / other for spent, other in zip(sums, rest, strict=True)]
    ratio = statistics.median(ratios)
    record("the boundary, over the rest of a pod's start", ratios)
    record("the boundary", sums, unit="ms of CPU", budget=BUDGET_MS)
    lines.append(
        f"shim and broker for everything else: {statistics.median(rest):.0f} ms; ratio {ratio:.2f}; "
        + kept(statistics.median(sums), BUDGET_MS)
    )
    return lines


async def main(arguments: argparse.Namespace) -> None:
    """Run all of it and print it."""
    lab = Lab(IMAGE)
    try:
        async with lab.sink:
            rounds = [await measure_start(lab) for _ in range(arguments.rounds)]
    finally:
        await lab.close()  # a round that failed has left its shim
        lab.remove()
    brokered, direct = await anyio.to_thread.run_sync(measure_command)
    print("\n".join(report(rounds)))
    ours, theirs = statistics.median(brokered), statistics.median(direct)
    record("a monitor's command by the broker", brokered, unit="ms", budget=COMMAND_BUDGET_MS)
    print(
        f"a monitor's command: {ours:.3f} ms by the broker (least {min(brokered):.3f}), {theirs:.3f} ms "
        f"directly, ratio {ours / theirs:.1f}; {kept(ours, COMMAND_BUDGET_MS)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    anyio.run(main, parser.parse_args())
