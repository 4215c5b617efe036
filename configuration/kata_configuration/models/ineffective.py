"""Keys that runtime-rs reads and never acts on, and that no driver of ours needs. Defaults: see qemu_planned.

Source: Kata Containers 4.1.0. Its runtime-rs does not use these fields outside of the code that reads them;
its Go runtime acts on those that say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from kata_configuration.models.base import (
    About,
    ActedOnBy,
    Annotation,
    BitsPerSecond,
    Globs,
    HostPath,
    Indifferent,
    Instead,
    Mebibytes,
    OptionalPath,
    Strings,
    Table,
    Text,
)
from kata_configuration.models.machine_keys import NOT_CONFIDENTIAL

GO = ActedOnBy("Kata's Go runtime")
NO_VHOST_USER = Instead("the block devices of a guest are those of the host's kernel")
NO_DUMP = Instead("the memory of a guest that panicked is not saved; what its kernel printed is logged")
NO_DAX = Instead("a guest reads shared files through a page cache of its own")
NO_RATE = Instead(
    "a guest's network is as fast as its pod's",
    advice="remove it, and limit the pod's interface, as the CNI plugin bandwidth does",
)
VHOST_USER = "/var/run/kata-containers/vhost-user"


class HypervisorIneffective(Table):
    """Keys of every [hypervisor.NAME]."""

    ctlpath: Annotated[
        OptionalPath,
        About("A program that controls the hypervisor.", "Kata 3.0.0"),
        Instead("the runtime controls the hypervisor by its own interface"),
        Annotation(listed_in="valid_ctlpaths"),
    ] = None
    valid_ctlpaths: Annotated[Globs, About("Shell patterns for ctlpath.", "Kata 3.0.0")] = ()
    disable_block_device_use: Annotated[
        bool,
        About("Do not give block devices to the guest.", "Kata 3.0.0"),
        GO,
        Instead(
            "a root file system on a block device is mounted on the host and shared where files are shared, "
            "and is a disk of the guest elsewhere",
            advice="remove it, and choose by shared_fs",
            lost_with=("shared_fs", "none"),
        ),
    ] = False
    block_device_cache_set: Annotated[
        bool,
        About("Set the cache options of block devices.", "Kata 3.0.0"),
        GO,
        Indifferent(),
        Instead("each cache option of block devices is in force without it"),
    ] = False
    block_device_cache_noflush: Annotated[
        bool,
        About("Ignore the guest's requests to flush block devices.", "Kata 3.0.0"),
        GO,
        Instead("what the guest has flushed is on the host's disk"),
    ] = False
    disable_image_nvdimm: Annotated[
        bool,
        About("Do not give the image to the guest as persistent memory.", "Kata 3.0.0"),
        Instead("the image is a disk of the guest"),
        Indifferent(),
        GO,
    ] = False
    memory_offset: Annotated[
        Mebibytes,
        About("Address space kept for persistent memory.", "Kata 3.0.0"),
        GO,
        Instead("a machine has no persistent memory, and no address space is kept for it", lost=False),
    ] = Field(0, ge=0)
    enable_vhost_user_store: Annotated[
        bool, About("Use devices of vhost-user servers.", "Kata 3.0.0"), GO, NO_VHOST_USER
    ] = False
    vhost_user_store_path: Annotated[
        HostPath,
        About("The directory of vhost-user servers' sockets.", "Kata 3.0.0"),
        Annotation(listed_in="valid_vhost_user_store_paths"),
        GO,
        NO_VHOST_USER,
    ] = Path(VHOST_USER)
    valid_vhost_user_store_paths: Annotated[
        Globs, About("Shell patterns for vhost_user_store_path.", "Kata 3.0.0"), GO
    ] = (VHOST_USER,)
    guest_memory_dump_path: Annotated[
        OptionalPath,
        About("Where the memory of a guest that panicked is saved.", "Kata 3.0.0"),
        GO,
        NO_DUMP,
    ] = None
    guest_memory_dump_paging: Annotated[
        bool, About("Save it by the guest's own addresses.", "Kata 3.0.0"), GO, NO_DUMP
    ] = False
    pflashes: Annotated[
        Strings,
        About("Flash images of the machine.", "Kata 3.0.0"),
        GO,
        Instead(
            "a machine has no flash image: its firmware is one file",
            advice="remove it, and write firmware in [hypervisor.qemu]",
        ),
    ] = ()
    rx_rate_limiter_max_rate: Annotated[
        BitsPerSecond, About("Bandwidth into the guest.", "Kata 3.0.0"), GO, NO_RATE
    ] = Field(0, ge=0)
    tx_rate_limiter_max_rate: Annotated[
        BitsPerSecond, About("Bandwidth out of the guest.", "Kata 3.0.0"), GO, NO_RATE
    ] = Field(0, ge=0)
    snp_id_block: Annotated[
        Text, About("The ID block of a SEV-SNP guest.", "Kata 3.28.0"), GO, NOT_CONFIDENTIAL
    ] = ""
    snp_id_auth: Annotated[
        Text,
        About("The authentication of a SEV-SNP guest's ID block.", "Kata 3.28.0"),
        GO,
        NOT_CONFIDENTIAL,
    ] = ""
    virtio_fs_is_dax: Annotated[
        bool, About("Map the host's page cache into the guest.", "Kata 3.0.0"), NO_DAX
    ] = False
    virtio_fs_cache_size: Annotated[
        Mebibytes,
        About("Size of that mapping; upstream's Dragonball alone uses it.", "Kata 3.0.0"),
        GO,
        NO_DAX,
    ] = Field(0, ge=0)


class AgentIneffective(Table):
    """Keys of [agent.kata]."""

    passfd_listener_port: Annotated[
        int,
        About("A port that is not used: the key of [runtime] is.", "Kata 3.3.0"),
        Instead("the streams of containers cross to the guest on the agent's own connection", lost=False),
    ] = Field(1027, ge=1)


class RuntimeIneffective(Table):
    """Keys of [runtime]."""

    enable_pprof: Annotated[
        bool,
        About("Serve profiles of the Go runtime.", "Kata 3.0.0"),
        GO,
        Instead("no profile is served", advice="remove it, and read what kata-ctl metrics prints"),
    ] = False
