"""A machine grows with its containers and their limits, stays confined, and gives back what it can."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from growing import MIB, SETTINGS, check_growth, end, limits, machine, update
from kata_agent.ttrpc.status import RpcError
from shim_harness import Lab
from shim_pod import Pod

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

TOO_MUCH = "the memory limits of its pod come to 800 MiB, and its machine has room for 722"


@pytest.fixture(scope="module")
async def pod(lab: Lab) -> AsyncIterator[Pod]:
    """A pod whose machine boots with 1 CPU, and may have 2 and 1 GiB."""
    path = lab.configure("growing", **SETTINGS)
    async with Pod.running(lab, path) as pod:
        yield pod


async def test_it_grows_with_a_container_and_by_an_update_and_shrinks_again(pod: Pod) -> None:
    emulated = 'accelerator = "tcg"' in pod.shim.lab.configuration.read_text()
    # TCG has no place for a CPU that comes again.
    await check_growth(pod, takes_cpus_away=not emulated)


async def test_a_limit_beyond_what_it_may_have_is_refused_with_what_would_do(pod: Pod) -> None:
    with pytest.raises(RpcError) as error:
        await pod.create("true", linux={"resources": limits(1, 800)})
    assert TOO_MUCH in str(error.value)
    process = await pod.start_container("sleep", "1000", linux={"resources": limits(0.5, 64)})
    before = await machine(pod)
    for wanted, sentence in (
        (limits(0.5, 800), TOO_MUCH),
        (limits(3, 64), "3 CPUs are more than its machine may have, 2"),
    ):
        with pytest.raises(RpcError) as error:
            await update(process, wanted)
        assert sentence in str(error.value)
    look = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"
    assert (await pod.exec("sh", "-c", look, container=process)).text == f"50000 100000\n{64 * MIB}\n"
    assert await machine(pod) == before
    await end(process)
