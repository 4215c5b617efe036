"""Keys of [runtime] that the runtime does not honour yet. See qemu_planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kata_configuration.models.base import (
    AFTER_4_1,
    About,
    Instead,
    OptionalPath,
    Protects,
    Strings,
    Table,
    Text,
)
from kata_configuration.models.device_keys import NO_VFIO
from kata_configuration.models.subtables import SharedMount

OWN_STREAMS = Instead(
    "the streams of containers cross to the guest on the agent's own connection", lost=False
)
NO_TRACES = Instead("no traces are sent; the log says how long each stage of a pod's start has taken")


class RuntimePlanned(Table):
    """What the runtime will do."""

    experimental: Annotated[
        Strings,
        About('Features on trial: "force_guest_pull".', "Kata 3.0.0"),
        Instead(
            "images are unpacked on the host, by containerd's snapshotter",
            advice="remove it, and choose containerd's snapshotter",
        ),
    ] = ()
    enable_tracing: Annotated[bool, About("Send traces.", "Kata 3.0.0"), NO_TRACES] = False
    jaeger_endpoint: Annotated[Text, About('Where traces go; "" is this host.', "Kata 3.0.0"), NO_TRACES] = ""
    jaeger_user: Annotated[Text, About("The user at jaeger_endpoint.", "Kata 3.0.0"), NO_TRACES] = ""
    jaeger_password: Annotated[Text, About("That user's password.", "Kata 3.0.0"), NO_TRACES] = ""
    emptydir_mode: Annotated[
        Literal["shared-fs", "block-encrypted", "block-plain"],
        About("What emptyDir volumes are in the guest.", "Kata 3.31.0"),
        Instead(
            "an emptyDir volume is a directory of the host that the guest shares, or of medium Memory, a "
            "tmpfs of the guest's own",
            advice="remove it, and set medium: Memory of the volumes that must not be on the host's disks",
        ),
        Protects("block-encrypted"),
    ] = "shared-fs"
    vfio_mode: Annotated[
        Literal["", "guest-kernel", "vfio"],
        About(
            "How containers see host devices: bound to a driver of the guest's kernel, or as VFIO devices.",
            "Kata 3.0.0",
        ),
        NO_VFIO,
    ] = "guest-kernel"
    keep_abnormal: Annotated[
        bool,
        About("Clean nothing up after a failure, for debugging.", "Kata 3.2.0"),
        Instead(
            "what a pod had is cleaned up, and the log keeps what each of its processes said last",
            advice="remove it, and set enable_debug where more is to be logged",
        ),
    ] = False
    shared_mounts: Annotated[
        tuple[SharedMount, ...],
        Field(strict=False),
        About(
            "Directories that containers of a sandbox share.",
            "Kata 3.3.0",
        ),
        Instead(
            "containers share the directories that their specifications give to several of them",
            advice="remove it, and give the containers one volume, such as an emptyDir",
        ),
    ] = ()
    use_passfd_io: Annotated[
        bool, About("Give the agent the descriptors of containers' streams.", "Kata 3.3.0"), OWN_STREAMS
    ] = False
    passfd_listener_port: Annotated[
        int, About("The vsock port of use_passfd_io.", "Kata 3.3.0"), OWN_STREAMS
    ] = Field(1027, ge=1, le=2**32 - 2)
    pod_resource_api_sock: Annotated[
        OptionalPath,
        About(
            "The kubelet's socket that tells which devices a pod was given.",
            "Kata 3.31.0",
            example="/var/lib/kubelet/pod-resources/kubelet.sock",
        ),
        NO_VFIO,
    ] = None
    pod_resource_device_sources: Annotated[
        tuple[Literal["device-plugin", "dra"], ...],
        Field(strict=False),
        About("Which of the kubelet's lists of a pod's devices count.", AFTER_4_1),
        NO_VFIO,
    ] = ("device-plugin",)
    vsock_uds_forward: Annotated[
        Strings,
        About(
            'Sockets of the host that a guest reaches by a port of its vsock, as "PORT:PATH".',
            AFTER_4_1,
        ),
        Instead(
            "no Unix socket of the host is behind a port of a guest's vsock",
            advice="remove it, and let the pod reach that server by its network",
        ),
    ] = ()
