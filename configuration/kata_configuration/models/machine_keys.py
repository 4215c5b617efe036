"""The keys of [hypervisor.*] for the machine itself: what each is, once.

A driver's table names those that it honours, and gives each its default and its range there. Releases and
annotations: Kata Containers 4.1.0, src/libs/kata-types.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from kata_configuration.models.base import (
    OURS,
    About,
    Access,
    Annotation,
    CommaList,
    Effect,
    Form,
    Globs,
    HostPath,
    Instead,
    LogLevel,
    Mebibytes,
    Needs,
    OptionalPath,
    Protects,
    RoundedUp,
    Strings,
    Text,
    malformed,
)
from kata_configuration.models.device_keys import NO_SWAP

# Why an annotation may set a key that is open.
OWN_SIZE = "a pod's author chooses the size of its machine, whose memory and CPUs the pod's cgroup limits"

# What an annotation does that turns a filter off.
NO_FILTER = "run their machine without its seccomp filter"

# What happens in place of keys of confidential guests.
NOT_CONFIDENTIAL = Instead(
    "no guest is confidential: its host can read its memory",
    advice="remove it, and run pods whose host is not to be trusted with another runtime",
)

# What happens in place of the keys of a machine that grows, where none does.
FIXED_MEMORY = Instead("a machine keeps the memory that it starts with", lost=False)

GUEST_PATH = r"^((/(?!\.\.?(/|$))[^/]+)+)?$"


def _guest_path(value: str) -> str:
    if not re.fullmatch(GUEST_PATH, value):
        raise malformed("is no path of a directory", "write a path such as /usr/share/oci/hooks")
    return value


_BLOCK = ("512|1024|2048|4096", "512, 1024, 2048 or 4096")
# Parameter -> the form of its value, and in words. Source: the kernel's drivers/md/dm-verity-target.c.
VERITY = {
    "root_hash": ("[0-9a-f]{64}", "64 hexadecimal digits, in lower case"),
    "salt": ("([0-9a-f]{2}){1,256}", "an even number of hexadecimal digits, in lower case"),
    "data_blocks": ("[1-9][0-9]{0,11}", "the number of blocks"),
    "data_block_size": _BLOCK,
    "hash_block_size": _BLOCK,
}
_EACH = "".join(f"(?=(.*,)?{name}=({form})(,|$))" for name, (form, _) in VERITY.items())
VERITY_FORM = f"^({_EACH}[^,]+(,[^,]+){{{len(VERITY) - 1}}})?$"


def _verity_parameters(value: str) -> str:
    if not value:
        return value
    items = value.split(",")
    given = dict(item.partition("=")[::2] for item in items)
    for name in given:
        if name not in VERITY:
            raise malformed(f'has the unknown parameter "{name}"', f"use {', '.join(VERITY)}")
    for name, (form, words) in VERITY.items():
        if not given.get(name):
            raise malformed(f"has no {name}", f"add {name}=...")
        if not re.fullmatch(form, given[name]):
            raise malformed(f"has {name}={given[name]}", f"write {words}")
    if len(items) > len(given):
        raise malformed("has a parameter twice", "keep one of them")
    return value


def _paired_quotes(value: str) -> str:
    if value.count('"') % 2:
        raise malformed("has a double quote without its pair", "close it")
    return value


# Programs.
ProgramPath = Annotated[
    HostPath,
    About("The program that runs the virtual machine.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE),
    Annotation(listed_in="valid_hypervisor_paths", loosens="choose the program that runs their machine"),
]
ValidHypervisorPaths = Annotated[
    Globs,
    About(
        "Shell patterns of the programs that an annotation may name as path.",
        "Kata 3.0.0",
        takes_effect_in=Effect.LOADING,
    ),
]
JailerPath = Annotated[
    OptionalPath,
    About(
        "Firecracker's jailer, which puts it into a root directory of its own.",
        "Kata 3.0.0",
        example="/usr/bin/jailer",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_jailer_paths", loosens="choose the program that confines their machine"),
]
ValidJailerPaths = Annotated[
    Globs,
    About(
        "Shell patterns of the programs that an annotation may name as jailer_path.",
        "Kata 3.0.0",
        takes_effect_in=Effect.LOADING,
    ),
]

# What the machine boots.
Kernel = Annotated[
    HostPath,
    About(
        "The guest's kernel, a bzImage or vmlinuz file.",
        "Kata 3.0.0",
        example="/var/lib/kata-containers/image/vmlinuz",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_kernel_paths"),
]
KernelOrNone = Annotated[
    OptionalPath,
    About(
        'The guest\'s kernel, a bzImage or vmlinuz file; "" is none, and then unikernels only are run.',
        "Kata 3.0.0",
        example="/var/lib/kata-containers/image/vmlinuz",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_kernel_paths"),
]
ValidKernelPaths = Annotated[
    Globs,
    About(
        "Shell patterns of the files that an annotation may name as kernel.",
        OURS,
        takes_effect_in=Effect.LOADING,
    ),
]
Initrd = Annotated[
    OptionalPath,
    About(
        "The guest's early userspace; at least one of initrd and image is needed.",
        "Kata 3.0.0",
        example="/var/lib/kata-containers/image/kata-initrd.img",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_initrd_paths"),
]
ValidInitrdPaths = Annotated[
    Globs,
    About(
        "Shell patterns of the files that an annotation may name as initrd.",
        OURS,
        takes_effect_in=Effect.LOADING,
    ),
]
Image = Annotated[
    OptionalPath,
    About(
        "The guest's root file system; an initrd beside it loads the drivers and mounts it.",
        "Kata 3.0.0",
        example="/var/lib/kata-containers/image/kata-image.erofs",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_image_paths"),
]
ValidImagePaths = Annotated[
    Globs,
    About(
        "Shell patterns of the files that an annotation may name as image.",
        OURS,
        takes_effect_in=Effect.LOADING,
    ),
]
Firmware = Annotated[
    OptionalPath,
    About(
        "The firmware that a machine with a Linux guest starts with, in place of the VMM's own.",
        "Kata 3.0.0",
        example="/usr/share/OVMF/OVMF.fd",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(listed_in="valid_firmware_paths"),
]
ValidFirmwarePaths = Annotated[
    Globs,
    About(
        "Shell patterns of the files that an annotation may name as firmware.",
        OURS,
        takes_effect_in=Effect.LOADING,
    ),
]
RootfsType = Annotated[
    Literal["erofs", "ext4", "xfs"],
    About("The image's file system.", "Kata 3.1.0", takes_effect_in=Effect.KERNEL_LINE),
    Needs("image"),
]
KernelParams = Annotated[
    Text,
    AfterValidator(_paired_quotes),
    About(
        "Parameters added at the end of the kernel's command line; double quotes keep spaces.",
        "Kata 3.0.0",
        takes_effect_in=Effect.KERNEL_LINE,
    ),
    Form(r'^[^"]*("[^"]*"[^"]*)*$'),
    Annotation(by_parameter=True),
]
KernelVerityParams = Annotated[
    Text,
    AfterValidator(_verity_parameters),
    About(
        "What dm-verity needs to check the image: root_hash, salt, data_blocks, data_block_size and "
        "hash_block_size, each with = and a value, as kata-ctl image build prints them; the guest ends at "
        "the first block that is not what its hash says.",
        "Kata 3.27.0",
        takes_effect_in=Effect.KERNEL_LINE,
    ),
    Form(VERITY_FORM),
    Protects(),
    Needs("image"),
]

# Processors.
CpuFeatures = Annotated[
    CommaList,
    About(
        'Comma-separated properties of the guest\'s processor, such as "pmu=off".',
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
DefaultVcpus = Annotated[
    int,
    About(
        "Virtual CPUs of a virtual machine when it starts; an annotation with a fraction is rounded up.",
        "Kata 3.0.0",
        takes_effect_in=Effect.SIZE,
    ),
    Annotation(Access.OPEN, OWN_SIZE),
    RoundedUp(),
]
DefaultMaxVcpus = Annotated[
    int,
    About(
        "The most virtual CPUs that a virtual machine may have; 0 is the host's number.",
        "Kata 3.0.0",
        takes_effect_in=Effect.SIZE,
    ),
    Annotation(name="default_max_vcpus"),
]
OverheadVcpus = Annotated[
    float,
    About(
        "CPUs added to a container's limits when the machine is sized by them.",
        "Kata 4.0.0",
        takes_effect_in=Effect.SIZE,
    ),
    Needs("static_sandbox_resource_mgmt", table="runtime"),
]
DisableNestedVirtualization = Annotated[
    bool,
    About(
        "Hide the processor's virtualization from the guest.",
        "Kata 4.1.0",
        takes_effect_in=Effect.MACHINE,
    ),
    Annotation(loosens="run virtual machines in its guest, by the host's most intricate code"),
]

# Memory.
DefaultMemory = Annotated[
    Mebibytes,
    About("Memory of a virtual machine when it starts.", "Kata 3.0.0", takes_effect_in=Effect.SIZE),
    Annotation(Access.OPEN, OWN_SIZE),
]
DefaultMaxMemory = Annotated[
    Mebibytes,
    About(
        "The most memory that a virtual machine may have; 0 is the host's memory.",
        "Kata 3.3.0",
        takes_effect_in=Effect.SIZE,
    ),
    Needs("static_sandbox_resource_mgmt", without=True, table="runtime"),
]
OverheadMemory = Annotated[
    Mebibytes,
    About(
        "Memory added to a container's limits when the machine is sized by them, for the guest's kernel and "
        "agent, beside a 16th of the limits.",
        "Kata 4.0.0",
        takes_effect_in=Effect.SIZE,
    ),
    Needs("static_sandbox_resource_mgmt", table="runtime"),
]
MemorySlots = Annotated[
    int,
    About(
        "How often memory can be added to a running machine.",
        "Kata 3.0.0",
    ),
    Instead("memory is added by virtio-mem, as often as there is some to add", lost=False),
]
EnableMemPrealloc = Annotated[
    bool,
    About(
        "Allocate all of the guest's memory before it boots.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE
    ),
]
EnableHugepages = Annotated[
    bool,
    About(
        "Back the guest's memory with huge pages of 2 MiB, which the host has reserved.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
EnableVirtioMem = Annotated[
    bool,
    About(
        "Add and remove the guest's memory with virtio-mem; without it the machine's memory keeps its size.",
        "Kata 3.0.0",
        takes_effect_in=Effect.SIZE,
    ),
    Needs("static_sandbox_resource_mgmt", without=True, table="runtime"),
]
ReclaimGuestFreedMemory = Annotated[
    bool,
    About(
        "Give memory that the guest has freed back to the host, by the balloon.",
        "Kata 3.14.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
EnableGuestSwap = Annotated[
    bool,
    About("Give the guest a swap device.", "Kata 3.0.0"),
    NO_SWAP,
]
GuestSwapPath = Annotated[
    HostPath,
    About("The directory on the host for the files of guests' swap devices.", "Kata 3.15.0"),
    NO_SWAP,
    Needs("enable_guest_swap"),
]

# Confinement.
DisableSeccomp = Annotated[
    bool,
    About(
        "Run the virtual machine without a seccomp filter on its process.",
        "Kata 3.0.0",
        takes_effect_in=Effect.FILTER,
    ),
    Annotation(loosens=NO_FILTER),
]
HonorUnconfined = Annotated[
    bool,
    About(
        "Let a unikernel whose container's specification has no seccomp profile run without the filter.",
        OURS,
        takes_effect_in=Effect.FILTER,
    ),
    Annotation(loosens=NO_FILTER),
]
SelinuxLabel = Annotated[
    Text,
    About('The SELinux label of the process that runs the machine; "" is the host\'s own.', "Kata 3.21.0"),
    Instead(
        "the process that runs the machine has the SELinux label that containerd gave to the runtime",
        advice="remove it, and have SELinux's policy say which label containerd's shims have",
    ),
    Protects(),
]
DisableSelinux = Annotated[
    bool,
    About("Run the virtual machine without the SELinux label.", "Kata 3.21.0"),
    Instead("no SELinux label is set, and none is taken away", lost=False),
]
DisableGuestSelinux = Annotated[
    bool,
    About("Run containers without SELinux in the guest.", "Kata 3.9.0"),
    Instead(
        "containers run without SELinux in the guest",
        advice="remove it, and confine the containers by seccomp profiles, which hold in the guest",
    ),
    Protects(),
]
Rootless = Annotated[
    bool,
    About(
        "Run the virtual machine as an unprivileged user that the runtime makes.",
        "Kata 3.0.0",
    ),
    Instead("every machine runs as a user of its pod, who has no privileges", lost=False),
]
ConfidentialGuest = Annotated[
    bool,
    About("Encrypt the guest's memory with what the processor offers (TDX, SEV, SE).", "Kata 3.0.0"),
    NOT_CONFIDENTIAL,
    Protects(),
]
SevSnpGuest = Annotated[
    bool,
    About("Demand AMD SEV-SNP of a confidential guest.", "Kata 3.15.0"),
    NOT_CONFIDENTIAL,
    Protects(),
]
Initdata = Annotated[
    Text,
    About(
        "Data whose hash a confidential guest's attestation covers.",
        "Kata 3.19.0",
    ),
    NOT_CONFIDENTIAL,
    Protects(),
    Annotation(name="cc_init_data"),
]

# Operation.
EnableAnnotations = Annotated[
    Strings,
    About(
        "Patterns of what pods may change by annotations, each of which matches the whole name after "
        "io.katacontainers.config.hypervisor.",
        "Kata 3.0.0",
        takes_effect_in=Effect.LOADING,
    ),
    Annotation(Access.CLOSED, "it says what annotations may set"),
]
EnableDebug = Annotated[
    bool,
    About(
        "Log what the guest's kernel prints to its console, and the messages of the process that runs the "
        "machine.",
        "Kata 3.0.0",
        takes_effect_in=Effect.MACHINE,
    ),
]
HypervisorLogLevel = Annotated[
    LogLevel,
    About(
        "The least level of the messages about the hypervisor in the runtime's log; the lines of the guest's "
        "console and of the programs that run the machine are at debug.",
        "Kata 3.0.0",
        takes_effect_in=Effect.SHIM,
    ),
]
EntropySource = Annotated[
    HostPath,
    About("The host's source of the guest's random numbers.", "Kata 3.0.0", takes_effect_in=Effect.MACHINE),
    Annotation(listed_in="valid_entropy_sources"),
]
ValidEntropySources = Annotated[
    Globs,
    About(
        "Shell patterns of the files that an annotation may name as entropy_source.",
        "Kata 3.0.0",
        takes_effect_in=Effect.LOADING,
    ),
]
GuestHookPath = Annotated[
    Text,
    AfterValidator(_guest_path),
    Form(GUEST_PATH),
    About(
        "The directory in the guest whose directories prestart, poststart and poststop hold programs: they "
        'are hooks of every container there, in the order of their names; "" is none.',
        "Kata 3.0.0",
        takes_effect_in=Effect.AGENT,
    ),
    Annotation(loosens="choose the programs that run in its guest beside its containers"),
]
