"""The guest's clock runs at the host's rate, whatever the guest's kernel measured while it booted."""

from __future__ import annotations

import time

import anyio
import pytest

from shim_pod import Pod

pytestmark = pytest.mark.integration

RESOLUTION = 0.02
"""Seconds: twice that of /proc/uptime."""
SPAN = 5.0
CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


async def test_a_second_of_the_guest_is_a_second(shim_pod: Pod) -> None:
    """Each reading of the guest's clock lies between two of the host's: no busy host makes that wrong."""
    process = await shim_pod.start_container(
        "sh", "-c", "while read _; do cat /proc/uptime; done", stdin=True
    )
    stdin, stdout = process.streams.stdin, process.streams.stdout
    assert stdin is not None
    assert stdout is not None

    async def read() -> tuple[float, float, float]:
        before = time.monotonic()
        await stdin.write(b"\n")
        line = await stdout.read_until(b"\n")
        return before, float(line.split()[0]), time.monotonic()

    await read()
    before, first, after = await read()
    await anyio.sleep(SPAN)
    again_before, second, again_after = await read()
    assert again_before - after - RESOLUTION <= second - first <= again_after - before + RESOLUTION
    assert (await process.finish(b"")).status == 0


async def test_an_emulated_counter_is_no_clock_source(shim_pod: Pod) -> None:
    finished = await shim_pod.run("cat", CLOCK_SOURCE)
    assert finished.stdout.strip() == b"hpet"
