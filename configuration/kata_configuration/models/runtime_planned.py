"""Keys of [runtime] that the runtime does not honour yet. See qemu_planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kata_configuration.models.base import (
    About,
    Access,
    Annotation,
    OptionalPath,
    Protects,
    Strings,
    Table,
    Text,
)
from kata_configuration.models.subtables import SharedMount


class RuntimePlanned(Table):
    """What the runtime will do."""

    experimental: Annotated[
        Strings,
        About('Features on trial: "force_guest_pull".', "Kata 3.0.0"),
    ] = ()
    disable_new_netns: Annotated[
        bool,
        About(
            "Run the virtual machine in the host's network.",
            "Kata 3.0.0",
        ),
    ] = False
    sandbox_bind_mounts: Annotated[
        Strings,
        About(
            "Directories of the host that every guest gets, each with :ro (the default) or :rw.", "Kata 3.0.0"
        ),
        Annotation(Access.CLOSED, "it opens directories of the host"),
    ] = ()
    enable_vcpus_pinning: Annotated[
        bool,
        About(
            "Bind each virtual CPU to a CPU of the host where their numbers agree.",
            "Kata 3.30.0",
        ),
    ] = False
    enable_tracing: Annotated[bool, About("Send traces.", "Kata 3.0.0")] = False
    jaeger_endpoint: Annotated[Text, About('Where traces go; "" is this host.', "Kata 3.0.0")] = ""
    jaeger_user: Annotated[Text, About("The user at jaeger_endpoint.", "Kata 3.0.0")] = ""
    jaeger_password: Annotated[Text, About("That user's password.", "Kata 3.0.0")] = ""
    emptydir_mode: Annotated[
        Literal["shared-fs", "block-encrypted", "block-plain"],
        About("What emptyDir volumes are in the guest.", "Kata 3.31.0"),
        Protects("block-encrypted"),
    ] = "shared-fs"
    vfio_mode: Annotated[
        Literal["", "guest-kernel", "vfio"],
        About(
            "How containers see host devices: bound to a driver of the guest's kernel, or as VFIO devices.",
            "Kata 3.0.0",
        ),
    ] = "guest-kernel"
    keep_abnormal: Annotated[
        bool, About("Clean nothing up after a failure, for debugging.", "Kata 3.2.0")
    ] = False
    dan_conf: Annotated[
        OptionalPath,
        About(
            "The directory of files that name the devices of a sandbox's network, where it has one.",
            "Kata 3.3.0",
        ),
        Annotation(Access.CLOSED, "it names what the host's devices are"),
    ] = Path("/run/kata-containers/dans")
    shared_mounts: Annotated[
        tuple[SharedMount, ...],
        Field(strict=False),
        About(
            "Directories that containers of a sandbox share.",
            "Kata 3.3.0",
        ),
    ] = ()
    use_passfd_io: Annotated[
        bool, About("Give the agent the descriptors of containers' streams.", "Kata 3.3.0")
    ] = False
    passfd_listener_port: Annotated[int, About("The vsock port of use_passfd_io.", "Kata 3.3.0")] = Field(
        1027, ge=1, le=2**32 - 2
    )
    pod_resource_api_sock: Annotated[
        OptionalPath,
        About(
            "The kubelet's socket that tells which devices a pod was given.",
            "Kata 3.31.0",
            example="/var/lib/kubelet/pod-resources/kubelet.sock",
        ),
    ] = None
