"""QEMU's machine grows and shrinks: virtual CPUs by device_add and device_del, memory by virtio-mem.

Sources: QEMU's qapi/machine.json (query-hotpluggable-cpus, query-memory-devices), qapi/qdev.json, and its
documentation of virtio-mem: the device's property requested-size says how much memory the guest shall have,
and its size how much it has. The guest's kernel plugs memory in when it has the driver, and lets a CPU go
when it can do without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.contract import MachineSize, VmSpec, check_size
from kata_hypervisor.qemu.info import CPU_MODELS, LATER_MEMORY_PATH, cpu_name
from kata_hypervisor.qemu.qmp import QmpClient, QmpError

MIB = 1 << 20

LOOK = 0.02
"""Seconds between two looks at how far the guest has come."""


class Growth:
    """The size of one machine.

    monitor: of its QEMU. spec: what it was made by. patience: seconds in which a guest that does not take
    or give what it is asked for is left alone again.
    """

    def __init__(self, table: QemuTable, monitor: QmpClient, spec: VmSpec, patience: float) -> None:
        self._model = CPU_MODELS[table.accelerator]
        # TCG has a place for each CPU that there may be, and gives none back: it aborts at one plug too many
        # (source: QEMU's tcg/region.c, tcg_max_ctxs). So there a CPU that has come stays.
        self._takes_cpus_away = table.accelerator != "tcg"
        self._monitor = monitor
        self._spec = spec
        self._patience = patience

    async def size(self) -> MachineSize:
        """What the machine has now. Raises QmpError."""
        return MachineSize(len(await self._vcpus()), self._spec.memory_mib + await self._plugged() // MIB)

    async def resize(self, size: MachineSize) -> MachineSize:
        """See `Hypervisor.resize`. Raises QmpError, HypervisorError."""
        check_size(self._spec, size)
        if self._spec.later_memory_mib:
            await self._set_plugged((size.memory_mib - self._spec.memory_mib) * MIB)
        await self._set_vcpus(size.vcpus)
        return await self.size()

    # -- processors ----------------------------------------------------------------------------------------

    async def _vcpus(self) -> set[int]:
        """The sockets that have a CPU."""
        found: set[int] = set()
        for entry in await self._list("query-hotpluggable-cpus"):
            if "qom-path" in entry:
                found.add(_number(_part(entry, "props"), "socket-id"))
        return found

    async def _set_vcpus(self, count: int) -> None:
        there = await self._vcpus()
        most = self._spec.most.vcpus if self._spec.most is not None else self._spec.vcpus
        free = [number for number in range(most) if number not in there]
        for number in free[: max(0, count - len(there))]:
            place = {"socket-id": number, "core-id": 0, "thread-id": 0}
            await self._monitor.execute(
                "device_add", {"driver": self._model, "id": cpu_name(number), **place}
            )
        later = sorted(number for number in there if number >= self._spec.vcpus)
        surplus = max(0, len(there) - count) if self._takes_cpus_away else 0
        leaving = set(later[len(later) - surplus :])
        for number in leaving:
            await self._monitor.execute("device_del", {"id": cpu_name(number)})

        async def gone() -> bool:
            return not leaving & await self._vcpus()

        await self._wait(gone)

    # -- memory --------------------------------------------------------------------------------------------

    async def _plugged(self) -> int:
        """Bytes of memory that the guest has beside those that it booted with."""
        for entry in await self._list("query-memory-devices"):
            if entry.get("type") == "virtio-mem":
                return _number(_part(entry, "data"), "size")
        return 0

    async def _set_plugged(self, wanted: int) -> None:
        await self._request(wanted)

        async def followed() -> bool:
            return await self._plugged() == wanted

        if not await self._wait(followed):
            # What it has not done by now it shall not do later, when nobody expects it.
            await self._request(await self._plugged())

    async def _request(self, size: int) -> None:
        arguments = {"path": LATER_MEMORY_PATH, "property": "requested-size", "value": size}
        await self._monitor.execute("qom-set", arguments)

    # -- both ----------------------------------------------------------------------------------------------

    async def _wait(self, reached: Callable[[], Awaitable[bool]]) -> bool:
        """Look until something is so; whether it was while there was patience."""
        with anyio.move_on_after(self._patience):
            while True:
                if await reached():
                    return True
                await anyio.sleep(LOOK)
        return False

    async def _list(self, command: str) -> list[Mapping[str, object]]:
        answer = await self._monitor.execute(command)
        if not isinstance(answer, list) or not all(isinstance(entry, Mapping) for entry in answer):
            raise QmpError(f'qemu\'s answer to "{command}" is no list of objects')
        return answer


def _part(entry: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = entry.get(name)
    if not isinstance(part, Mapping):
        raise QmpError(f'qemu\'s answer has no object "{name}"')
    return part


def _number(entry: Mapping[str, object], name: str) -> int:
    number = entry.get(name)
    if type(number) is not int or number < 0:
        raise QmpError(f'qemu\'s answer has no number "{name}"')
    return number
