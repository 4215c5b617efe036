"""What a Linux guest is made of, by the configuration and its first container: the machine, the sandbox."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kata_agent.protos import agent_pb2
from kata_hypervisor import virtiofsd
from kata_hypervisor.contract import Disk, SharedDirectory, VmSpec
from kata_hypervisor.verity import Verity
from kata_runtime.container.bundle import ContainerType, container_type
from kata_runtime.container.guest_spec import GUEST_SHARED
from kata_runtime.resource import sizing

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_configuration.models import MachineHypervisor
    from kata_runtime.container.bundle import JsonObject
    from kata_runtime.identity import SandboxIdentity

_log = logging.getLogger(__name__)

SPARE_DISKS = 8
"""Disks that a pod's later containers may have at a time: block devices, or files where none are shared."""


def machine_of(
    configuration: Configuration,
    identity: SandboxIdentity,
    spec: JsonObject,
    disks: tuple[Disk, ...],
    *,
    spares: int = 0,
    resizable: bool = False,
) -> VmSpec:
    """Describe the virtual machine.

    spec: the first container's OCI specification, for its size. spares: how many disks it may get later, see
    `spare_disks`. resizable: whether its driver lets it grow.
    """
    table, runtime = machine_table(configuration), configuration.runtime
    host_cpus = os.cpu_count() or 1
    size = sizing.size_of(spec, table, static=runtime.static_sandbox_resource_mgmt, host_cpus=host_cpus)
    _log.info("machine: %d vCPUs, %d MiB (from %s)", size.vcpus, size.memory_mib, size.origin)
    most = None
    if resizable and not runtime.static_sandbox_resource_mgmt:
        growing = cast("sizing.GrowthDefaults", table)
        most = sizing.most_of(growing, size, host_cpus=host_cpus, host_memory_mib=_host_memory_mib())
    assert table.kernel is not None  # the registry makes no driver of a table without one
    return VmSpec(
        sandbox_id=identity.id[:64],
        directory=Path(identity.directory),
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        most=most,
        kernel=table.kernel,
        initrd=table.initrd,
        image=table.image,
        rootfs_type=table.rootfs_type,
        verity=Verity.parse(checked) if (checked := table.kernel_verity_params) else None,
        kernel_parameters=_kernel_parameters(configuration),
        shared=SharedDirectory(Path(identity.shared_directory)) if table.shares_files else None,
        disks=disks,
        # Where files are shared, a template is made without slots for disks: its copies have none either.
        spare_disks=0 if table.shares_files and table.template_path is not None else spares,
        template=table.template_path,
    )


def _host_memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sizing.MIB


def rootfs_device(configuration: Configuration) -> str:
    """By what the guest knows the disk with the first container's files, where no files are shared."""
    number = 1 if machine_table(configuration).image is not None else 0
    return f"/dev/vd{chr(ord('a') + number)}"


def spare_disks(spec: JsonObject, first: int | None) -> int:
    """How many disks a machine may get while it runs.

    first: those that its first container gets then; None where it has no container to start with. What a
    pod's other containers are given is not known when it starts.
    """
    if first is not None and container_type(spec) is ContainerType.SINGLE:
        return first
    return max(first or 0, SPARE_DISKS)


def machine_table(configuration: Configuration) -> MachineHypervisor:
    """The table in force, of a hypervisor whose machines have a kernel: the registry makes no other."""
    assert configuration.hypervisor.boots_linux
    return cast("MachineHypervisor", configuration.hypervisor)


def _kernel_parameters(configuration: Configuration) -> tuple[str, ...]:
    agent, table = configuration.agent, machine_table(configuration)
    parameters = ["agent.log=debug"] if agent.enable_debug else []
    if agent.container_pipe_size:
        parameters.append(f"agent.container_pipe_size={agent.container_pipe_size}")
    return (*parameters, *table.kernel_parameters)


def request_of(
    configuration: Configuration, identity: SandboxIdentity, spec: JsonObject, *, later_memory: bool = False
) -> agent_pb2.CreateSandboxRequest:
    """Describe the sandbox to the guest's agent. spec: the first container's, for the hostname.

    later_memory: whether memory may be plugged in while it runs.
    """
    modules = [agent_pb2.KernelModule(name="virtio_mem")] if later_memory else []
    for line in configuration.agent.kernel_modules:
        name, *parameters = line.split()
        modules.append(agent_pb2.KernelModule(name=name, parameters=parameters))
    table = machine_table(configuration)
    storages = [_shared(cast("virtiofsd.Table", table))] if table.shares_files else []
    return agent_pb2.CreateSandboxRequest(
        hostname=spec.get("hostname") or identity.id[:64],
        sandbox_id=identity.id,
        storages=storages,
        kernel_modules=modules,
        guest_hook_path=table.guest_hook_path,
    )


def _shared(table: virtiofsd.Table) -> agent_pb2.Storage:
    """The shared directory; open_files says how many its server may have, which the guest must not exceed."""
    open_files = virtiofsd.most_open_files(table.virtio_fs_extra_args)
    return agent_pb2.Storage(
        driver="virtio-fs",
        driver_options=[f"open_files={open_files}"],
        source="kataShared",
        fstype="virtiofs",
        options=["nodev"],
        mount_point=GUEST_SHARED,
    )
