"""The table [runtime]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kata_configuration.models.base import LogLevel, Table, Text


class Runtime(Table):
    """What the runtime itself does, and which hypervisor and agent it uses."""

    name: Literal["virt_container"] = Field(
        "virt_container", description="The kind of sandbox: containers in a virtual machine."
    )
    hypervisor_name: Text = Field(
        "qemu", description="The hypervisor to use: the X of a table [hypervisor.X]."
    )
    agent_name: Text = Field("kata", description="The agent to use: the X of a table [agent.X].")
    enable_debug: bool = Field(False, description="Let the runtime log at debug level.")
    log_level: LogLevel = Field("info", description="The least level of the messages that the runtime logs.")
    disable_guest_seccomp: bool = Field(
        False, description="Drop the seccomp profiles of containers inside the guest."
    )
    sandbox_cgroup_only: bool = Field(
        True, description="Account for everything that a sandbox runs on the host in one cgroup of the pod."
    )
    static_sandbox_resource_mgmt: bool = Field(
        True, description="Size the virtual machine when it starts, by the limits of what will run in it."
    )
    internetworking_model: Literal["none"] = Field(
        "none", description="How the guest is connected to the pod's network."
    )
