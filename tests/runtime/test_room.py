"""A machine grows by what its containers ask for, before they get it; what it cannot is said, and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.contract import MachineSize, VmSpec
from kata_hypervisor.errors import ConfinementError, HypervisorError
from kata_runtime.errors import UnsupportedError
from kata_runtime.pod.room import Room

MIB = 1 << 20
AT_BOOT, MOST = MachineSize(1, 512), MachineSize(4, 2048)
SPEC = VmSpec("pod", Path("/run/pod"), vcpus=1, memory_mib=512, most=MOST, kernel=Path("/k"))


class Guest:
    """A machine and its agent: what one is given the other switches on, as far as they do."""

    def __init__(self) -> None:
        self.size = AT_BOOT
        self.online = 1
        self.steps: list[object] = []
        self.takes = MOST
        self.keeps = AT_BOOT
        self.failure: Exception | None = None
        self.switches_on = True
        self.tells: bool | str = True
        self.timeout = 0.2

    async def resize(self, size: MachineSize) -> MachineSize:
        self.steps.append(size)
        if self.failure is not None and size != AT_BOOT:
            raise self.failure
        least, most = self.keeps, self.takes
        self.size = MachineSize(
            max(least.vcpus, min(size.vcpus, most.vcpus)),
            max(least.memory_mib, min(size.memory_mib, most.memory_mib)),
        )
        return self.size

    async def online_cpu_mem(self, request: Any) -> None:
        assert request.wait == (request.nb_cpus > 0)
        if not self.switches_on and request.nb_cpus:
            raise RpcError(Code.NOT_FOUND, "1 processors were to be switched on, the guest found 0")
        self.online += request.nb_cpus

    async def get_metrics(self, _: Any) -> agent_pb2.Metrics:
        there = self.size if self.switches_on else AT_BOOT
        text = f'# TYPE x gauge\nkata_guest_meminfo{{item="MemTotal"}} {(there.memory_mib - 40) * MIB}\n'
        if isinstance(self.tells, str):
            text = f'kata_guest_meminfo{{item="MemTotal"}} {self.tells}\n'
        return agent_pb2.Metrics(metrics=text if self.tells else "")


def room_of(guest: Any, spec: VmSpec = SPEC) -> Room:
    return Room(guest, guest, spec)


def limits(cpus: float, mib: int) -> dict[str, Any]:
    return {"cpu": {"quota": int(cpus * 100_000), "period": 100_000}, "memory": {"limit": mib * MIB}}


async def ask(room: Room, container: str, resources: dict[str, Any], within: Exception | None = None) -> None:
    async with room.made_for(f"create container {container}", container, resources):
        if within is not None:
            raise within


async def test_it_grows_by_the_sum_of_what_its_containers_ask_for() -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", {})
    assert guest.steps == []
    await ask(room, "one", limits(0.5, 100))
    await ask(room, "two", limits(0.4, 20))
    assert guest.steps == [MachineSize(2, 640)]  # the second has room in what the first was rounded to
    await ask(room, "three", limits(1, 128))
    assert room.size == guest.size == MachineSize(3, 896)
    assert guest.online == 3


async def test_a_machine_that_keeps_its_size_is_asked_for_nothing() -> None:
    guest = Guest()
    room = room_of(guest, VmSpec("pod", Path("/run/pod"), vcpus=1, memory_mib=512, kernel=Path("/k")))
    await ask(room, "one", limits(9, 9999))
    assert (guest.steps, room.grows, room.size, room.most) == ([], False, AT_BOOT, AT_BOOT)


async def test_never_more_cpus_than_it_may_have() -> None:
    guest = Guest()
    await ask(room_of(guest), "one", limits(9, 0))
    assert guest.size == MachineSize(4, 512)


async def test_memory_beyond_what_it_may_have_is_refused_with_what_would_do_and_nothing_happens() -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", limits(0, 1000))
    guest.steps.clear()
    with pytest.raises(UnsupportedError) as error:
        await ask(room, "two", limits(1, 446))
    assert str(error.value) == (
        "cannot create container two: the memory limits of its pod come to 1446 MiB, and its machine has "
        "room for 1445: it boots with 512 MiB and may have 2048, by default_maxmemory and enable_virtio_mem "
        "in the hypervisor's table, and by what this host has"
    )
    assert guest.steps == []
    await ask(room, "two", limits(1, 445))
    assert guest.size == MachineSize(2, 2048)


async def test_less_is_taken_from_it_after_the_limits_are_set() -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", limits(2, 600))
    async with room.made_for("update container one", "one", limits(1, 900)):
        assert guest.size == MachineSize(3, 1536)  # both until the new limits are set
    assert room.size == guest.size == MachineSize(2, 1536)


async def test_what_a_removed_container_had_is_the_next_ones() -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", limits(1, 600))
    room.leave("one")
    await ask(room, "two", limits(1, 600))
    assert guest.steps == [MachineSize(2, 1152)]


async def test_limits_that_are_not_set_are_not_counted() -> None:
    guest = Guest()
    room = room_of(guest)
    with pytest.raises(RuntimeError):
        await ask(room, "one", limits(1, 1400), RuntimeError("the guest refused"))
    await ask(room, "two", limits(1, 1400))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"takes": MachineSize(4, 640)},
            "was to have 2 vCPUs and 1152 MiB, and the guest has taken 2 vCPUs and",
        ),
        ({"takes": MachineSize(1, 2048)}, "and the guest has taken 1 vCPUs and 1152 MiB; its kernel needs"),
        ({"failure": HypervisorError("cannot resize the virtual machine: no room")}, "no room"),
        ({"switches_on": False}, "the guest found 0"),
    ],
)
async def test_a_guest_that_does_not_follow_has_what_it_had(change: dict[str, Any], sentence: str) -> None:
    guest = Guest()
    for name, value in change.items():
        setattr(guest, name, value)
    room = room_of(guest)
    with pytest.raises((HypervisorError, RpcError)) as error:
        await ask(room, "one", limits(1, 600))
    assert sentence in str(error.value)
    assert room.size == guest.size == AT_BOOT
    assert guest.steps[-1] == AT_BOOT


async def test_memory_that_the_guests_kernel_does_not_switch_on_is_not_promised() -> None:
    guest = Guest()
    guest.switches_on = False
    with pytest.raises(
        HypervisorError, match="create container one: the guest's kernel does not switch on 640"
    ):
        await ask(room_of(guest), "one", limits(0, 600))


@pytest.mark.parametrize("tells", [False, "9" * 5000, "-1", "1e9", "\u0664"])
async def test_an_agent_that_does_not_tell_is_believed(tells: bool | str) -> None:
    """One that a guest owns may say what is no number of bytes."""
    guest = Guest()
    guest.tells = tells
    await ask(room_of(guest), "one", limits(0, 600))
    assert guest.size == MachineSize(1, 1152)


async def test_a_guest_that_keeps_what_it_has_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", limits(2, 600))
    guest.failure = HypervisorError("cannot resize the virtual machine: the guest keeps it")
    await ask(room, "one", limits(1, 100))
    assert room.size == guest.size == MachineSize(3, 1152)
    assert "the machine keeps 3 vCPUs and 1152 MiB, where 2 vCPUs and 640 MiB would do" in caplog.text


async def test_a_part_of_a_step_that_the_guest_keeps_is_made_whole_when_it_grows() -> None:
    guest = Guest()
    room = room_of(guest)
    await ask(room, "one", limits(1, 600))
    guest.keeps = MachineSize(1, 900)
    await ask(room, "one", limits(1, 100))
    assert room.size == guest.size == MachineSize(2, 900)
    await ask(room, "two", limits(1, 100))
    assert room.size == MachineSize(3, 1024)
    assert all((size.memory_mib - 512) % 128 == 0 for size in guest.steps if isinstance(size, MachineSize))


async def test_a_breach_of_confinement_is_no_matter_of_size() -> None:
    guest = Guest()
    guest.failure = ConfinementError("thread 7 of qemu has no filter")
    with pytest.raises(ConfinementError):
        await ask(room_of(guest), "one", limits(1, 0))
