"""Tables inside of tables: [hypervisor.NAME.factory], rootless_user, and the elements of arrays of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from kata_configuration.models.base import (
    About,
    CommaList,
    Effect,
    HostPath,
    Instead,
    Needs,
    OptionalPath,
    Table,
    Text,
)

Number = Annotated[int, Field(ge=1, le=2**32 - 2)]


class Factory(Table):
    """Starting virtual machines from a template: one is booted, all others are copies of it."""

    enable_template: Annotated[
        bool,
        About(
            "Start every pod's virtual machine as a copy of one that kata-ctl factory init has booted; "
            "a pod of another size is booted as always.",
            "Kata 3.23.0",
            takes_effect_in=Effect.MACHINE,
        ),
    ] = False
    template_path: Annotated[
        HostPath,
        About(
            "The directory that holds the template, best on a tmpfs: its files are the copies' memory.",
            "Kata 3.23.0",
            takes_effect_in=Effect.MACHINE,
        ),
    ] = Path("/run/vc/vm/template")


PlannedFactory = Annotated[
    Factory,
    About("Starting virtual machines from a template.", "Kata 3.23.0"),
    Instead(
        "every machine is booted",
        advice="remove it, or use the hypervisor dragonball, whose machines start from a template",
    ),
]


class RootlessUser(Table):
    """The user that an unprivileged virtual machine runs as."""

    uid: Annotated[Number, About("The user's number.", "Kata 3.22.0", example=65534)]
    gid: Annotated[Number, About("The number of the user's group.", "Kata 3.22.0", example=65534)]
    groups: Annotated[
        tuple[Number, ...],
        Field(strict=False),
        About("The numbers of further groups, such as that of /dev/kvm.", "Kata 3.22.0"),
    ] = ()
    user_name: Annotated[Text, About("The user's name, for the log.", "Kata 3.22.0")] = ""


RootlessUserKey = Annotated[
    RootlessUser | None,
    About(
        "The user that runs the machine where rootless is true; a new one where it is absent.", "Kata 3.22.0"
    ),
    Needs("rootless"),
    Instead(
        "every machine runs as a user that no other pod has",
        advice="remove it, and set sandbox_uid_base and sandbox_uid_count in [runtime]",
    ),
]


class GuestExtensionImage(Table):
    """A file system image that the guest gets as a disk beside its own."""

    name: Annotated[
        Text, About("The image's name, by which the guest finds it.", "Kata 4.0.0", example="tools")
    ]
    path: Annotated[
        OptionalPath,
        About("The image's file on the host.", "Kata 4.0.0", example="/usr/share/kata-containers/tools.img"),
    ] = None
    verity_params: Annotated[
        CommaList, About("What dm-verity needs to check it, as in kernel_verity_params.", "Kata 4.0.0")
    ] = ""


class SharedMount(Table):
    """A directory of one container of a sandbox that another one gets."""

    name: Annotated[Text, About("The mount's name.", "Kata 3.3.0", example="cache")]
    src_ctr: Annotated[Text, About("The container that has the directory.", "Kata 3.3.0", example="server")]
    src_path: Annotated[HostPath, About("The directory there.", "Kata 3.3.0", example="/cache")]
    dst_ctr: Annotated[Text, About("The container that gets it.", "Kata 3.3.0", example="client")]
    dst_path: Annotated[HostPath, About("The directory that it appears as.", "Kata 3.3.0", example="/cache")]
