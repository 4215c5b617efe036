"""The table [runtime]: what the runtime honours. What it does not honour yet: runtime_planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kata_configuration.bind_mount import FORM, BindMount
from kata_configuration.models.base import (
    OURS,
    About,
    Access,
    Annotation,
    Effect,
    Form,
    Instead,
    LogLevel,
    Needs,
    OnlyTrue,
    OptionalPath,
    Table,
    Text,
    malformed,
)

# Other name of a hypervisor -> the name of its table.
OTHER_NAMES = {"cloud-hypervisor": "clh"}


def _own_name(name: str) -> str:
    return OTHER_NAMES.get(name, name)


def _bind_mount(value: str) -> str:
    try:
        BindMount.parse(value)
    except ValueError:
        raise malformed(
            "is no path of a directory or file of the host",
            "write a path such as /srv/tools, or /srv/tools:rw",
        ) from None
    return value


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
    required_confinement: Annotated[
        tuple[Literal["landlock", "cgroup"], ...],
        Field(strict=False),
        About(
            "What a pod must have although hosts may lack it, or it is refused: landlock on the runtime's "
            "process, a cgroup with the controllers cpu, memory and pids; a lack of what is not named is a "
            "warning.",
            OURS,
            takes_effect_in=Effect.FILTER,
        ),
        Annotation(loosens="run on a host that lacks what the configuration requires"),
    ] = ()
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
        OptionalPath,
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
            "Size the virtual machine when it starts, by the limits of what will run in it; without it the "
            "machine starts with its defaults, and grows by the limits of each container that comes, where "
            "its hypervisor can do that (qemu, clh).",
            "Kata 3.2.0",
            takes_effect_in=Effect.SIZE,
        ),
    ] = True
    enable_vcpus_pinning: Annotated[
        bool,
        About(
            "Keep each virtual CPU on one CPU of the host as long as the cpusets of the pod's containers "
            "name as many CPUs as its machine has; else each runs on any CPU of the pod's cgroup.",
            "Kata 3.30.0",
            takes_effect_in=Effect.SHIM,
        ),
    ] = False
    internetworking_model: Annotated[
        Literal["tcfilter", "macvtap", "none"],
        About(
            "How the guest is connected to the pod's network: by taps and redirecting filters, by macvtaps "
            "where links can carry them, or not at all.",
            "Kata 3.0.0",
            takes_effect_in=Effect.MACHINE,
        ),
    ] = "tcfilter"
    disable_new_netns: Annotated[
        bool,
        About(
            "Run the VMM in the host's network namespace, and not in the pod's; only where the guest has no "
            'network, by internetworking_model = "none".',
            "Kata 3.0.0",
            takes_effect_in=Effect.SHIM,
        ),
        Annotation(loosens="run the VMM in the host's network namespace"),
    ] = False
    spoof_protection: Annotated[
        bool,
        About(
            "With the model tcfilter, let a guest send from the pod's addresses only, in IPv4, ARP, IPv6 and "
            "neighbour discovery, and not just from its MAC address; pods that route for others need it off.",
            OURS,
            takes_effect_in=Effect.MACHINE,
        ),
        Needs("internetworking_model", without="none"),
        Annotation(loosens="send from addresses of others"),
    ] = True
    dan_conf: Annotated[
        OptionalPath,
        About(
            "The directory of files that describe a sandbox's network in place of its namespace, each named "
            'SANDBOX.json, where there is one: taps that the operator has made on the host ("host-tap").',
            "Kata 3.3.0",
            takes_effect_in=Effect.MACHINE,
        ),
        Annotation(Access.CLOSED, "it names what the host's devices are"),
    ] = Path("/run/kata-containers/dans")
    sandbox_bind_mounts: Annotated[
        tuple[Annotated[Text, AfterValidator(_bind_mount), Form(FORM)], ...],
        Field(strict=False),
        About(
            "Directories and files of the host that every Linux guest gets beside those of its containers, "
            "read-only or with :rw at the end to be written; the guest's own programs find each by its last "
            "name in /run/kata-containers/shared/containers/sandbox-mounts.",
            "Kata 3.0.0",
            takes_effect_in=Effect.SHIM,
        ),
        Annotation(Access.CLOSED, "it opens directories of the host"),
    ] = ()
    refused_annotations: Annotated[
        Literal["fail", "warn"],
        About(
            "What happens to a pod with an annotation that enable_annotations does not allow.",
            OURS,
            takes_effect_in=Effect.LOADING,
        ),
        Annotation(Access.CLOSED, "it says what becomes of annotations"),
    ] = "fail"
