"""The keys of [hypervisor.*] for devices and shared files: what each is, once. See machine_keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kata_configuration.models.base import (
    About,
    Annotation,
    BitsPerSecond,
    Effect,
    Globs,
    HostPath,
    Instead,
    Mebibytes,
    Needs,
    Octets,
    Percent,
    PowerOfTwo,
    Seconds,
    Strings,
    malformed,
)

NO_SWAP = Instead(
    "a guest has no swap device, and a container beyond its limit is ended by the guest's kernel",
    advice="remove it, and give the containers the memory that they need",
)

MIN_SECTOR = 512

# Upstream's names, and those of its Go runtime where they are others.
BlockDriver = Literal[
    "virtio-blk-pci",
    "virtio-blk-ccw",
    "virtio-blk-mmio",
    "virtio-pmem",
    "virtio-scsi",
    "virtio-blk",
    "nvdimm",
]


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise malformed("is not a power of two", f"write {1 << value.bit_length() - 1}")
    return value


def _sector_size(value: int) -> int:
    if 0 < value < MIN_SECTOR:
        raise malformed(f"is less than {MIN_SECTOR}", f"write {MIN_SECTOR}, or 0 for the device's own")
    return _power_of_two(value) if value else value


# Devices of the host that a guest drives itself.
NO_VFIO = Instead(
    "a guest gets the block devices of the host that its containers name, as disks, and no other device",
    advice="remove it, and run pods that need another device with another runtime",
)

# Block devices.
BLOCK_DEVICE_DRIVER = About(
    "The virtual device that carries a container's block device.",
    "Kata 3.0.0",
    takes_effect_in=Effect.MACHINE,
)
VM_ROOTFS_DRIVER = About("The virtual device that carries the image.", "Kata 3.2.0")
ONE_DRIVER = Instead(
    "every disk of a guest is a virtio-blk device, which the guest finds by its name", lost=False
)
BlockDeviceCacheDirect = Annotated[
    bool,
    About(
        "Read and write block devices past the host's page cache (O_DIRECT).",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
BlockDeviceCacheNoflush = Annotated[
    bool,
    About(
        "Ignore the guest's requests to flush block devices to the host's disk: a host that crashes loses "
        "what a guest has saved.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
QueueSize = Annotated[
    int,
    About(
        "Requests that a queue of a block device holds, a power of two.",
        "Kata 3.24.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=2, le=32768),
    AfterValidator(_power_of_two),
    PowerOfTwo(),
    Annotation(name="block_device_queue_size"),
]
NumQueues = Annotated[
    int,
    About("Queues of a block device.", "Kata 3.24.0", takes_effect_in=Effect.MACHINE),
    Field(ge=1, le=256),
    Annotation(name="block_device_num_queues"),
]
DiskBandwidth = Annotated[
    BitsPerSecond,
    About(
        "Bandwidth of each disk in each direction; 0 is no limit.",
        "Kata 3.21.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=2**63 - 1),
]
DiskBandwidthBurst = Annotated[
    int,
    About(
        "Bits that a disk may move at once before disk_rate_limiter_bw_max_rate holds it.",
        "Kata 3.21.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=2**63 - 1),
    Needs("disk_rate_limiter_bw_max_rate"),
]
DiskOperations = Annotated[
    int,
    About(
        "Operations of each disk in a second; 0 is no limit.", "Kata 3.21.0", takes_effect_in=Effect.MACHINE
    ),
    Field(ge=0, le=2**63 - 1),
]
DiskOperationsBurst = Annotated[
    int,
    About(
        "Operations that a disk may do at once before disk_rate_limiter_ops_max_rate holds it.",
        "Kata 3.21.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=2**63 - 1),
    Needs("disk_rate_limiter_ops_max_rate"),
]
LogicalSectorSize = Annotated[
    Octets,
    About(
        "The size of the sectors by which the guest addresses a container's block device, a power of two "
        "from 512 on; 0 is the device's own.",
        "Kata 3.29.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=65536),
    AfterValidator(_sector_size),
    PowerOfTwo(MIN_SECTOR, or_zero=True),
    Annotation(name="blk_logical_sector_size"),
]
PhysicalSectorSize = Annotated[
    Octets,
    About(
        "The size of the sectors to which the guest aligns what it writes to a container's block device, a "
        "power of two from 512 on; 0 is the device's own.",
        "Kata 3.29.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=65536),
    AfterValidator(_sector_size),
    PowerOfTwo(MIN_SECTOR, or_zero=True),
    Annotation(name="blk_physical_sector_size"),
]
GuestSwapSize = Annotated[
    Percent,
    About("Size of the guest's swap, of its memory.", "Kata 3.15.0"),
    NO_SWAP,
    Field(ge=1, le=10000),
    Needs("enable_guest_swap"),
]
GuestSwapThreshold = Annotated[
    Seconds,
    About("Time between the guest's start and the making of its swap device.", "Kata 3.15.0"),
    NO_SWAP,
    Field(ge=0, le=3600),
    Needs("enable_guest_swap"),
]

# Network.
NetworkQueues = Annotated[
    int,
    About("Pairs of queues of a network device.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE),
    Field(ge=1, le=256),
    Needs("internetworking_model", without="none", table="runtime"),
]
DisableVhostNet = Annotated[
    bool,
    About(
        "Move network packets in the process that runs the machine, and not in the host's kernel where that "
        "has vhost-net.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Needs("internetworking_model", without="none", table="runtime"),
]

ReceiveRate = Annotated[
    BitsPerSecond,
    About(
        "Bandwidth into the guest, of each network device; 0 is no limit.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=2**63 - 1),
    Needs("internetworking_model", without="none", table="runtime"),
]
SendRate = Annotated[
    BitsPerSecond,
    About(
        "Bandwidth out of the guest, of each network device; 0 is no limit.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=0, le=2**63 - 1),
    Needs("internetworking_model", without="none", table="runtime"),
]

# Shared files.
SHARES_FILES = Needs("shared_fs", without="none")
SHARED_FS = About(
    "How the guest sees the containers' files on the host.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE
)
SharedFs = Annotated[Literal["virtio-fs", "none"], SHARED_FS]
NoSharedFs = Annotated[
    Literal["none"], SHARED_FS, Instead("each container's files are a block device, and volumes are refused")
]
VirtioFsDaemon = Annotated[
    HostPath,
    About("The virtiofsd program, needed for virtio-fs.", "Kata 3.0.0", takes_effect_in=Effect.VIRTIOFSD),
    Annotation(
        listed_in="valid_virtio_fs_daemon_paths", loosens="choose the program that serves files of the host"
    ),
    SHARES_FILES,
]
ValidVirtioFsDaemonPaths = Annotated[
    Globs,
    About(
        "Shell patterns of the programs that an annotation may name as virtio_fs_daemon.",
        "Kata 3.0.0",
        takes_effect_in=Effect.LOADING,
    ),
]
VirtioFsExtraArgs = Annotated[
    Strings,
    About("Arguments added to virtiofsd's command line.", "Kata 3.0.0", takes_effect_in=Effect.VIRTIOFSD),
    SHARES_FILES,
    Annotation(loosens="choose arguments of the program that serves files of the host"),
]
VirtioFsCache = Annotated[
    Literal["never", "auto", "always"],
    About(
        "How long the guest may trust what it has read from the host's files.",
        "Kata 3.0.0",
        takes_effect_in=Effect.VIRTIOFSD,
    ),
    SHARES_FILES,
]
VirtioFsQueueSize = Annotated[
    int,
    About(
        "Requests that a queue of the shared file system holds, a power of two.",
        "Kata 3.1.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Field(ge=2, le=32768),
    AfterValidator(_power_of_two),
    PowerOfTwo(),
    SHARES_FILES,
]
VirtioFsCacheSize = Annotated[
    Mebibytes,
    About(
        "Size of the window through which the guest maps the host's page cache (DAX); 0 is none.",
        "Kata 3.0.0",
    ),
    Field(ge=0, le=16 * 1024 * 1024),
]
