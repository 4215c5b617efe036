"""QEMU's machine grows and shrinks by commands that the broker lets through, and says what it has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import MachineSize, VmSpec
from kata_hypervisor.errors import HypervisorError
from kata_hypervisor.qemu.command import Devices, command_line, shown
from kata_hypervisor.qemu.growth import Growth
from kata_hypervisor.qemu.info import LATER_MEMORY_PATH, QEMU
from kata_hypervisor.qemu.qmp import QmpError
from kata_runtime.broker.monitor import CommandFilter

MIB = 1 << 20
SPEC = VmSpec(
    sandbox_id="pod",
    directory=Path("/run/pod"),
    vcpus=2,
    memory_mib=512,
    most=MachineSize(4, 2048),
    kernel=Path("/k/vmlinuz"),
)


def table(**settings: Any) -> QemuHypervisor:
    return QemuHypervisor(**{"kernel": "/k/vmlinuz", "accelerator": "kvm", **settings})


TABLE = table()


class Machine:
    """QEMU's monitor, behind the broker's filter, and a guest that follows as far as it can."""

    def __init__(
        self, *, most_memory: int = 1 << 40, keeps_cpus: bool = False, model: str = "host-x86_64-cpu"
    ) -> None:
        self.cpus = {0, 1}
        self.size = self.requested = 0
        self.commands: list[str] = []
        self.answers: dict[str, Any] = {}
        self._most_memory = most_memory
        self._keeps_cpus = keeps_cpus
        self._model = model

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        rules = CommandFilter(QEMU.monitor_commands)
        assert json.loads(rules.take(json.dumps(message).encode())) == message
        self.commands.append(command)
        return self.answers.get(command) or getattr(self, command.replace("-", "_"))(arguments)

    def query_hotpluggable_cpus(self, _: None) -> list[dict[str, Any]]:
        return [
            {
                "type": "host-x86_64-cpu",
                "vcpus-count": 1,
                "props": {"socket-id": number, "core-id": 0, "thread-id": 0},
                **({"qom-path": "/machine/x"} if number in self.cpus else {}),
            }
            for number in range(4)
        ]

    def query_memory_devices(self, _: None) -> list[dict[str, Any]]:
        return [{"type": "dimm", "data": {}}, {"type": "virtio-mem", "data": {"size": self.size}}]

    def device_add(self, cpu: dict[str, Any]) -> dict[str, Any]:
        assert (cpu["driver"], cpu["id"]) == (self._model, f"cpu-{cpu['socket-id']}")
        self.cpus.add(cpu["socket-id"])
        return {}

    def device_del(self, cpu: dict[str, Any]) -> dict[str, Any]:
        if not self._keeps_cpus:
            self.cpus.remove(int(cpu["id"].removeprefix("cpu-")))
        return {}

    def qom_set(self, setting: dict[str, Any]) -> dict[str, Any]:
        assert (setting["path"], setting["property"]) == (LATER_MEMORY_PATH, "requested-size")
        self.requested = setting["value"]
        self.size = min(self.requested, self._most_memory)
        return {}


def growth(machine: Any, spec: VmSpec = SPEC, patience: float = 0.05) -> Growth:
    return Growth(TABLE, machine, spec, patience)


async def test_it_becomes_what_is_asked_for_and_what_it_was() -> None:
    machine = Machine()
    one = growth(machine, patience=60)
    for size in (MachineSize(3, 640), MachineSize(4, 2048), MachineSize(2, 1024), MachineSize(2, 512)):
        assert await one.resize(size) == size
        assert len(machine.cpus) == size.vcpus
        assert machine.size == (size.memory_mib - 512) * MIB
    assert machine.cpus == {0, 1}  # those that it booted with stay


async def test_a_cpu_that_has_come_stays_where_qemu_could_not_plug_it_again() -> None:
    machine = Machine(model="max-x86_64-cpu")
    one = Growth(table(accelerator="tcg"), machine, SPEC, 0.05)  # type: ignore[arg-type]
    for size in (MachineSize(3, 640), MachineSize(2, 512), MachineSize(3, 512)):
        assert await one.resize(size) == MachineSize(3, size.memory_mib)
    assert machine.commands.count("device_add") == 1
    assert "device_del" not in machine.commands


async def test_what_is_there_already_is_not_asked_for() -> None:
    machine = Machine()
    await growth(machine).resize(MachineSize(2, 512))
    assert not {"device_add", "device_del"} & set(machine.commands)


async def test_a_guest_that_takes_less_is_asked_for_no_more() -> None:
    machine = Machine(most_memory=256 * MIB)
    assert await growth(machine).resize(MachineSize(2, 1024)) == MachineSize(2, 768)
    assert machine.requested == 256 * MIB


async def test_a_guest_that_keeps_its_cpus_has_them() -> None:
    machine = Machine(keeps_cpus=True)
    one = growth(machine)
    await one.resize(MachineSize(4, 512))
    assert await one.resize(MachineSize(2, 512)) == MachineSize(4, 512)


@pytest.mark.parametrize("size", [(1, 512), (5, 512), (2, 384), (2, 2176), (2, 520)])
async def test_a_size_that_it_was_not_made_for_is_refused(size: tuple[int, int]) -> None:
    machine = Machine()
    with pytest.raises(HypervisorError, match="made for 2 to 4 vCPUs, and for 512 to 2048 MiB in steps"):
        await growth(machine).resize(MachineSize(*size))
    with pytest.raises(HypervisorError, match="for 2 to 2 vCPUs, and for 512 to 512 MiB"):
        await growth(machine, replace(SPEC, most=None)).resize(MachineSize(3, 512))
    assert machine.commands == []


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-hotpluggable-cpus", {"x": 1}),
        ("query-hotpluggable-cpus", [1]),
        ("query-hotpluggable-cpus", [{"qom-path": "x"}]),
        ("query-hotpluggable-cpus", [{"qom-path": "x", "props": {"socket-id": "0"}}]),
        ("query-memory-devices", [{"type": "virtio-mem", "data": {"size": -1}}]),
        ("query-memory-devices", [{"type": "virtio-mem", "data": {"size": True}}]),
    ],
)
async def test_a_qemu_that_answers_nonsense_is_found_out(command: str, answer: Any) -> None:
    machine = Machine()
    machine.answers[command] = answer
    with pytest.raises(QmpError, match="qemu's answer"):
        await growth(machine).resize(MachineSize(2, 640))


# -- its command line --------------------------------------------------------------------------------------


def test_a_machine_that_may_grow_has_room_for_it() -> None:
    argv = command_line(TABLE, SPEC, Devices(None))
    assert argv[argv.index("-smp") + 1] == "cpus=2,maxcpus=4,sockets=4,cores=1,threads=1"
    assert argv[argv.index("-m") + 1] == "512M,maxmem=2048M"
    assert argv[-4:] == [
        *("-object", "memory-backend-memfd,id=later,size=1536M,share=on,seal=on,reserve=off"),
        *("-device", "virtio-mem-pci,id=later-memory,memdev=later"),
    ]
    line = argv[argv.index("-append") + 1]
    assert "memhp_default_state=online memory_hotplug.online_policy=auto-movable" in line
    assert shown(TABLE, SPEC, Devices(None)).file_size == 1536 * MIB


def test_one_whose_memory_stays_has_no_device_for_it() -> None:
    argv = command_line(TABLE, replace(SPEC, most=MachineSize(4, 512)), Devices(None))
    assert argv[argv.index("-m") + 1] == "512M"
    assert not any("virtio-mem" in argument or "memhp" in argument for argument in argv)


@pytest.mark.parametrize("key", ["enable_hugepages", "enable_mem_prealloc"])
def test_memory_that_is_to_be_there_is_taken_when_it_is_plugged(key: str) -> None:
    argv = command_line(table(**{key: True}), SPEC, Devices(None))
    assert argv[-1] == "virtio-mem-pci,id=later-memory,memdev=later,prealloc=on"
    assert ("hugetlb=on" in argv[-3]) == (key == "enable_hugepages")
    assert "prealloc" not in argv[-3]
