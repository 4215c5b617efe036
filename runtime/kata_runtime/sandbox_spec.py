"""What a sandbox consists of, by its configuration and its first container: the machine, the agent's part."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kata_agent.constants import AGENT_PORT
from kata_agent.protos import agent_pb2
from kata_hypervisor.contract import Disk, SharedDirectory, VmSpec
from kata_runtime.guest_spec import GUEST_SHARED, GUEST_SHM
from kata_runtime.resource import sizing

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.bundle import JsonObject
    from kata_runtime.identity import SandboxIdentity

_log = logging.getLogger(__name__)


def machine_of(
    configuration: Configuration, identity: SandboxIdentity, spec: JsonObject, disks: tuple[Disk, ...]
) -> VmSpec:
    """Describe the virtual machine. spec: the first container's OCI specification, for its size."""
    table, runtime = configuration.hypervisor, configuration.runtime
    host_cpus = os.cpu_count() or 1
    size = sizing.size_of(spec, table, static=runtime.static_sandbox_resource_mgmt, host_cpus=host_cpus)
    _log.info("machine: %d vCPUs, %d MiB (from %s)", size.vcpus, size.memory_mib, size.origin)
    shares = table.shared_fs == "virtio-fs"
    return VmSpec(
        sandbox_id=identity.id[:64],
        directory=Path(identity.directory),
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        kernel=table.kernel,
        initrd=table.initrd,
        image=table.image,
        rootfs_type=table.rootfs_type,
        kernel_parameters=_kernel_parameters(configuration),
        shared=SharedDirectory(Path(identity.shared_directory)) if shares else None,
        disks=disks,
        agent_port=AGENT_PORT,
    )


def _kernel_parameters(configuration: Configuration) -> tuple[str, ...]:
    agent, table = configuration.agent, configuration.hypervisor
    words = ["agent.log=debug"] if agent.enable_debug else []
    if agent.container_pipe_size:
        words.append(f"agent.container_pipe_size={agent.container_pipe_size}")
    return (*words, *table.kernel_parameters)


def request_of(
    configuration: Configuration, identity: SandboxIdentity, spec: JsonObject
) -> agent_pb2.CreateSandboxRequest:
    """Describe the sandbox to the guest's agent. spec: the first container's, for the hostname."""
    modules = []
    for line in configuration.agent.kernel_modules:
        name, *parameters = line.split()
        modules.append(agent_pb2.KernelModule(name=name, parameters=parameters))
    storages = [_SHARED] if configuration.hypervisor.shared_fs == "virtio-fs" else []
    return agent_pb2.CreateSandboxRequest(
        hostname=spec.get("hostname") or identity.id[:64],
        sandbox_id=identity.id,
        storages=[*storages, _SHM],
        kernel_modules=modules,
    )


_SHARED = agent_pb2.Storage(
    driver="virtio-fs",
    source="kataShared",
    fstype="virtiofs",
    options=["nodev"],
    mount_point=GUEST_SHARED,
)
_SHM = agent_pb2.Storage(
    driver="ephemeral",
    source="shm",
    fstype="tmpfs",
    options=["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
    mount_point=GUEST_SHM,
)
