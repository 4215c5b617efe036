"""Benchmarks: what the runtime adds to what it cannot avoid, each pair measured in turn in one run.

    start     CPU time of the shim's `start`, beside a bare start of the same interpreter
    create    from Create to the container's first output, beside a bare QEMU boot of the same kernel, image
              and command line to the agent's first line
    memory    proportional set size of each process of a sandbox, without the guest's memory

Prints a table, and JSON with --json. Machines are noisy: quote medians and ratios. Budgets: SPECIFICATION.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from results import record

from kata_runtime.ctl.running import running_sandboxes
from oci_bundle import make_process, make_spec
from shim_harness import Lab, Shim

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
START_MS, CREATE, MEMORY_MIB = 30.0, 1.15, 40.0
"""SPECIFICATION.md, "Budgets"."""
READY = re.compile(rb"kata-agent: .*ready")


def child_cpu(command: list[str], **how: Any) -> float:
    """CPU seconds, user and system, of one process without its children."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{command}: {errors.decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime


async def measure_start(lab: Lab, rounds: int) -> list[tuple[float, float]]:
    """Pairs of CPU seconds: `start`, and the bare interpreter."""
    pairs = []
    for _ in range(rounds):
        name = lab.new_id("start")
        lab.identity(name)
        bundle = lab.bundle(name, make_spec(make_process("true")))
        command = [
            str(lab.launcher),
            "-namespace",
            lab.namespace,
            "-address",
            lab.address,
            "-id",
            name,
            "start",
        ]
        cpu = await anyio.to_thread.run_sync(lambda: child_cpu(command, cwd=bundle))  # noqa: B023
        bare = child_cpu([sys.executable, "-IS", "-c", "pass"])
        pairs.append((cpu, bare))
        address = (bundle / "address").read_text()
        shim = await Shim.connect(lab, name, bundle, address)
        await shim.close()
    return pairs


def bare_boot(image: Path, memory_mib: int = 512) -> float:
    """Seconds from starting QEMU to the agent's first line, with nothing of the runtime around it."""
    from kata_hypervisor.kernel_line import COMMON
    from kata_hypervisor.qemu.command import MACHINE_DEFAULTS, SERIAL_PORT_NAME

    disk = image / "kata-image.erofs"
    parameters = " ".join(
        [*COMMON, "tsc=unstable", "no_timer_check", "quiet", "root=/dev/vda", "rootfstype=erofs", "ro"]
    )
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", f"q35,{MACHINE_DEFAULTS}", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-m", f"{memory_mib}M", "-bios", "qboot.rom", "-kernel", str(image / "vmlinuz")),
        *("-initrd", str(image / "kata-initrd.img"), "-append", parameters, "-serial", "stdio"),
        *("-device", "virtio-serial-pci,id=serial,max_ports=2", "-chardev", "null,id=agent"),
        *("-device", f"virtserialport,bus=serial.0,chardev=agent,name={SERIAL_PORT_NAME}"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        *("-blockdev", f"driver=raw,node-name=image,read-only=on,file.driver=file,file.filename={disk}"),
        *("-device", "virtio-blk-pci,drive=image"),
    ]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    seen = b""
    while not READY.search(seen):
        data = os.read(process.stdout.fileno(), 4096)
        if not data:
            raise RuntimeError(f"the bare boot ended early: {seen.decode(errors='replace')}")
        seen += data
    seconds = time.monotonic() - begin
    process.kill()
    process.wait()
    process.stdout.close()
    return seconds


async def measure_create(lab: Lab, rounds: int) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Pairs of seconds, Create to first output and a bare boot; and the last sandbox's memory in MiB."""
    pairs = []
    memory: dict[str, float] = {}
    for _ in range(rounds):
        bare = await anyio.to_thread.run_sync(bare_boot, IMAGE)
        name = lab.new_id("create")
        shim = await lab.start_shim(name, make_spec(make_process("sh", "-c", "echo up; sleep 1000")))
        begin = time.monotonic()
        process = await shim.create(container_id=name)
        await process.start()
        assert process.streams.stdout is not None
        await process.streams.stdout.read_until(b"up\n")
        pairs.append((time.monotonic() - begin, bare))
        memory = memory_of(name)
        await process.kill(9)
        await process.wait()
        await process.delete()
        await shim.close()
    return pairs, memory


def memory_of(sandbox_id: str) -> dict[str, float]:
    """Proportional set size in MiB of each process of a sandbox, without mappings of the guest's memory."""
    found: dict[str, float] = {}
    for sandbox in running_sandboxes():
        if sandbox.id == sandbox_id:
            for process in sandbox.processes:
                found[process.name] = found.get(process.name, 0.0) + pss_mib(process.pid)
    return found


def pss_mib(pid: int) -> float:
    total, counted = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            counted = "memory-backend-memfd" not in line
        elif counted and line.startswith("Pss:"):
            total += int(line.split()[1])
    return total / 1024


def summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of both sides, and the median of the ratios pair by pair."""
    return {
        "ours": statistics.median(ours for ours, _ in pairs),
        "bare": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(ours / bare for ours, bare in pairs),
        "rounds": len(pairs),
    }


async def main(arguments: argparse.Namespace) -> None:
    """Run all benchmarks and print them."""
    lab = Lab(IMAGE)
    try:
        async with lab.sink:
            starts = await measure_start(lab, arguments.rounds * 2)
            pairs, memory = await measure_create(lab, arguments.rounds)
    finally:
        lab.remove()
    start, create = summary(starts), summary(pairs)
    record("start, over a bare interpreter", [ours / bare for ours, bare in starts])
    record("start", [ours * 1e3 for ours, _ in starts], unit="ms of CPU", budget=START_MS)
    record("Create to first output, over a bare boot", [ours / bare for ours, bare in pairs], budget=CREATE)
    own = sum(memory.get(name, 0.0) for name in ("shim", "broker"))
    record("memory of shim and broker", [own], unit="MiB", budget=MEMORY_MIB)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "start_cpu_seconds": start,
        "create_to_output_seconds": create,
        "memory_mib": memory,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"machine: {result['machine']}")
    for name, unit, scale, pair in (("start", "ms of CPU", 1e3, start), ("create", "s", 1, create)):
        ours, bare = pair["ours"] * scale, pair["bare"] * scale
        print(f"{name + ':':<8} {ours:.2f} {unit}, bare {bare:.2f}, ratio {pair['ratio']:.2f}")
    print("memory:  " + ", ".join(f"{name} {mib:.1f} MiB" for name, mib in memory.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    anyio.run(main, parser.parse_args())
