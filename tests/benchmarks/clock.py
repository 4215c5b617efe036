"""How far a guest's clock goes from a busy host's: on QEMU, emulated where KVM runs no guest.

A container of a pod tells its time, again and again; each answer lies between two readings of the host's
clock, whose distance is what it is uncertain by. When the clock has gone further than the limit in the end,
the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from shim_harness import Lab
from shim_pod import Pod
from shim_process import Process

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
READ = "while read _; do adjtimex | grep tv_ | tr '\\n' ' '; echo; done"
TIME = re.compile(rb"time\.tv_sec: *(\d+).*time\.tv_usec: *(\d+)")
BUSY = "while True: pass"


async def reading(process: Process) -> tuple[float, float]:
    """The guest's clock less the host's, and how uncertain that is, in seconds."""
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None
    before = time.time()
    await stdin.write(b"\n")
    found = TIME.search(await stdout.read_until(b"\n"))
    after = time.time()
    assert found is not None
    return int(found[1]) + int(found[2]) / 1e6 - (before + after) / 2, (after - before) / 2


async def best(process: Process) -> tuple[float, float]:
    """The most certain of some readings."""
    return min([await reading(process) for _ in range(10)], key=lambda one: one[1])


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--load", type=int, default=2 * (os.cpu_count() or 1), help="busy processes")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of difference that are too much")
    options = parser.parse_args()
    lab = Lab(IMAGE)
    async with lab.sink:
        pod = await Pod.start(lab)
        process = await pod.start_container("sh", "-c", READ, stdin=True)
        busy = [
            await anyio.open_process(
                [sys.executable, "-IS", "-c", BUSY], stdin=None, stdout=None, stderr=None
            )
            for _ in range(options.load)
        ]
        try:
            for minute in range(options.minutes + 1):
                offset, uncertain = await best(process)
                load = os.getloadavg()[0]
                print(
                    f"after {minute:3} min: {offset:+.3f} s, give or take {uncertain:.3f} (load {load:.1f})",
                    flush=True,
                )
                if minute < options.minutes:
                    await anyio.sleep(60)
        finally:
            for one in busy:
                one.kill()
                await one.wait()
        print("\n".join(line for line in pod.shim.log.splitlines() if "clock" in line))
        await process.finish(b"")
        await pod.shim.close()
        await lab.close()
    lab.remove()
    return 1 if abs(offset) - uncertain > options.limit else 0


if __name__ == "__main__":
    sys.exit(anyio.run(main))
