"""The boot of a unikernel: its files are opened, its machine is made; it runs when its container starts."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kata_hypervisor import registry
from kata_hypervisor.contract import BlockFile, NetTap, UnikernelSpec, UnikernelVmm
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.guest import GuestBoot, RunStage
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.resource import network
from kata_runtime.resource.network import PodNetwork
from kata_runtime.unikernel.address import address_of, warnings_of
from kata_runtime.unikernel.guest import UnikernelGuest
from kata_runtime.unikernel.streams import UnikernelStreams

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.process import Container
    from kata_runtime.identity import SandboxIdentity
    from kata_runtime.unikernel.description import Unikernel

_log = logging.getLogger(__name__)

MIB = 1 << 20


class UnikernelBoot(GuestBoot):
    """A unikernel that is still to come.

    Raises:
        UnsupportedError, NotSupportedError: the configured hypervisor does not run it.
    """

    machine: UnikernelVmm

    def __init__(
        self,
        configuration: Configuration,
        identity: SandboxIdentity,
        broker: Broker,
        unikernel: Unikernel,
        container: Container,
    ) -> None:
        name, table = configuration.hypervisor_name, configuration.hypervisor
        unikernel.check_runner(name)
        self._runtime = configuration.runtime
        self._runner = name
        self.machine = registry.create_for_unikernel(name, table, broker)
        self._default_memory = table.default_memory
        self._identity = identity
        self._broker = broker
        self._unikernel = unikernel
        self._container = container
        self._streams = UnikernelStreams(container.init.paths)

    async def prepare(self) -> None:
        """See GuestBoot. Raises InvalidRequestError where the image lacks a file."""
        if self._runtime.enable_vcpus_pinning:
            raise UnsupportedError(
                f"cannot run the unikernel {self._unikernel.binary}: enable_vcpus_pinning is set, and the "
                "virtual CPU of a unikernel is not kept on a CPU of the host; use a configuration without "
                "that key"
            )
        attached = await self._attach_network()
        try:
            await self._prepare(attached)
        finally:
            attached.close()

    async def _attach_network(self) -> PodNetwork:
        able = self.machine.capabilities
        network.refuse_described(network.described_at(self._runtime.dan_conf, self._identity.id))
        return await network.attach(
            self._broker,
            self._runtime.internetworking_model,
            spoof_protection=self._runtime.spoof_protection,
            named=able.tap_names,
            header=able.tap_header,
            forward=False,  # which needs an agent
            hypervisor="" if able.tap_names or able.tap_descriptors else self._runner,
        )

    async def _prepare(self, attached: PodNetwork) -> None:
        address = address_of(attached.plan)
        for line in warnings_of(attached.plan):
            _log.warning("%s", line)
        unikernel, process = self._unikernel, self._container.spec["process"]
        with ExitStack() as files:
            binary = await self._open("binary", unikernel.binary, files)
            block = initrd = None
            if unikernel.block:
                block = BlockFile(await self._open("block", unikernel.block, files, write=True))
            if unikernel.initrd:
                initrd = await self._open("initrd", unikernel.initrd, files)
            await self.machine.prepare(
                UnikernelSpec(
                    sandbox_id=self._identity.id[:64],
                    directory=Path(self._identity.directory),
                    memory_mib=self._memory(),
                    name=unikernel.binary,
                    file=binary,
                    output=self._streams.output,
                    command_line=unikernel.command_line(process["args"], process.get("env") or (), address),
                    block=block,
                    net=_device(attached),
                    initrd=initrd,
                    unconfined=not (self._container.spec.get("linux") or {}).get("seccomp"),
                )
            )

    async def _open(self, key: str, name: str, files: ExitStack, *, write: bool = False) -> int:
        try:
            descriptor = await self._broker.open_in_image(self._container.rootfs, name, write=write)
        except RequestFailedError as error:
            raise InvalidRequestError(
                f"the {self._unikernel.origin} names {name!r} as the unikernel's {key}: {error}"
            ) from None
        files.callback(os.close, descriptor)
        return descriptor

    def _memory(self) -> int:
        """The container's memory limit where it has one, as urunc does it, in MiB."""
        resources = (self._container.spec.get("linux") or {}).get("resources") or {}
        limit = (resources.get("memory") or {}).get("limit")
        return max(limit // MIB, 1) if isinstance(limit, int) and limit > 0 else self._default_memory

    async def start(self, run_stage: RunStage) -> UnikernelGuest:
        """See GuestBoot: it has nothing to wait for."""
        return UnikernelGuest(self._container, self.machine, self._streams)

    async def stop(self) -> None:
        """See GuestBoot."""
        self._streams.close()
        await self.machine.stop()


def _device(attached: PodNetwork) -> NetTap | None:
    """The pod's only tap as a unikernel's device."""
    if not attached.taps:
        return None
    (tap,) = attached.taps
    descriptor = tap.fds[0] if tap.fds else -1
    return NetTap(descriptor, bytes.fromhex(tap.mac.replace(":", "")), tap.mtu, tap.name)
