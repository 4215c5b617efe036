"""The table [runtime]: what the runtime honours. What it does not honour yet: runtime_planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kata_configuration.models.base import (
    OURS,
    About,
    Access,
    Annotation,
    Effect,
    Instead,
    LogLevel,
    OnlyTrue,
    Table,
    Text,
)

# Other name of a hypervisor -> the name of its table.
OTHER_NAMES = {"cloud-hypervisor": "clh"}


def _own_name(name: str) -> str:
    return OTHER_NAMES.get(name, name)


class Runtime(Table):
    """What the runtime itself does, and which hypervisor and agent it uses."""

    name: Annotated[
        Literal["virt_container"],
        About(
            "The kind of sandbox: containers in a virtual machine.",
            "Kata 3.0.0",
            takes_effect_in=Effect.LOADING,
        ),
        Annotation(Access.CLOSED, "there is one kind"),
    ] = "virt_container"
    hypervisor_name: Annotated[
        Text,
        AfterValidator(_own_name),
        About(
            "The hypervisor to use: the X of a table [hypervisor.X].",
            "Kata 3.0.0",
            takes_effect_in=Effect.MACHINE,
        ),
        Annotation(loosens="choose the hypervisor, with what confines it"),
    ] = "qemu"
    agent_name: Annotated[
        Text,
        About("The agent to use: the X of a table [agent.X].", "Kata 3.0.0", takes_effect_in=Effect.LOADING),
        Annotation(Access.CLOSED, "it selects what the runtime trusts in the guest"),
    ] = "kata"
    enable_debug: Annotated[
        bool, About("Let the runtime log at debug level.", "Kata 3.0.0", takes_effect_in=Effect.SHIM)
    ] = False
    log_level: Annotated[
        LogLevel,
        About(
            "The least level of the messages that the runtime logs.",
            "Kata 3.0.0",
            takes_effect_in=Effect.SHIM,
        ),
    ] = "info"
    disable_guest_seccomp: Annotated[
        bool,
        About(
            "Drop the seccomp profiles of containers inside the guest.",
            "Kata 3.0.0",
            takes_effect_in=Effect.AGENT,
        ),
        Annotation(loosens="run containers without their seccomp profiles"),
    ] = False
    shim_seccomp: Annotated[
        Literal["enforce", "log", "off"],
        About(
            "The seccomp filter of the runtime's own process: enforce ends the pod at a call outside its "
            "policy, log lets the call through and names it in the log, off runs without the filter.",
            OURS,
            takes_effect_in=Effect.FILTER,
        ),
        Annotation(loosens="run the runtime's own process without its filter"),
    ] = "enforce"
    sandbox_uid_base: Annotated[
        int,
        About(
            "The first of the user and group ids that pods run as, one for each pod.",
            OURS,
            takes_effect_in=Effect.SHIM,
        ),
        Annotation(loosens="choose the user that its processes run as on the host"),
    ] = Field(1_900_000_000, ge=1000, le=2**31 - 1)
    sandbox_uid_count: Annotated[
        int,
        About(
            "How many user and group ids there are for pods, and so how many pods may run.",
            OURS,
            takes_effect_in=Effect.SHIM,
        ),
        Annotation(loosens="choose the user that its processes run as on the host"),
    ] = Field(65536, ge=1, le=2**30)
    sandbox_cgroup_only: Annotated[
        OnlyTrue,
        About(
            "Account for everything that a sandbox runs on the host in one cgroup of the pod.",
            "Kata 3.0.0",
            takes_effect_in=Effect.SHIM,
        ),
        Instead("everything that a sandbox runs on the host is in one cgroup of the pod", lost=False),
    ] = True
    static_sandbox_resource_mgmt: Annotated[
        bool,
        About(
            "Size the virtual machine when it starts, by the limits of what will run in it.",
            "Kata 3.2.0",
            takes_effect_in=Effect.SIZE,
        ),
    ] = True
    internetworking_model: Annotated[
        Literal["tcfilter", "macvtap", "none"],
        About(
            "How the guest is connected to the pod's network: by taps and redirecting filters, by macvtaps "
            "where links can carry them, or not at all.",
            "Kata 3.0.0",
            takes_effect_in=Effect.MACHINE,
        ),
    ] = "tcfilter"
    refused_annotations: Annotated[
        Literal["fail", "warn"],
        About(
            "What happens to a pod with an annotation that enable_annotations does not allow.",
            OURS,
            takes_effect_in=Effect.LOADING,
        ),
        Annotation(Access.CLOSED, "it says what becomes of annotations"),
    ] = "fail"
