"""Firecracker's command line, its jailer's, and its description of a machine, as pure functions.

Sources: docs/getting-started.md, docs/jailer.md and the OpenAPI description of Firecracker 1.12 to 1.17.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_hypervisor.contract import Disk, Tap, VmSpec
from kata_hypervisor.firecracker.info import EMPTY, spare
from kata_hypervisor.kernel_line import is_partitioned, kernel_line
from kata_hypervisor.machine_privileges import machine_privileges
from kata_hypervisor.privileges import TUN, Privileges
from kata_hypervisor.rate_limiter import bandwidth_limiter, rate_limiter

if TYPE_CHECKING:
    from kata_configuration.models.firecracker import Firecracker as Table

GUEST_CID = 3
"""The guest's vsock id; each machine has its own socket, so all may have the same."""

ID_LIMIT = 64
NO_FILE = 1024
"""Descriptors that a jailed Firecracker may open."""


# Firecracker has no PCI and no IOMMU by default; i8042.* keeps the kernel from waiting for a keyboard.
KERNEL_PARAMETERS = (
    "pci=off",
    "iommu=off",
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
)

# VMX is bit 5 of ECX in CPUID's leaf 1, SVM bit 2 of ECX in leaf 8000_0001h. A guest that has neither in its
# CPUID gets none of their MSRs from KVM. "x" leaves a bit as it is.
NOT_NESTED = [
    {
        "leaf": leaf,
        "subleaf": "0x0",
        "flags": 0,
        "modifiers": [{"register": "ecx", "bitmap": f"0b{'x' * (31 - bit)}0{'x' * bit}"}],
    }
    for leaf, bit in (("0x1", 5), ("0x80000001", 2))
]

Json = dict[str, Any]
Request = tuple[str, str, Json]
"""Purpose, path and body of a PUT."""


class Places(NamedTuple):
    """Paths as Firecracker sees them: the API's and the guest's sockets, and files of the machine by name."""

    api: Path
    vsock: Path
    files: dict[Path, Path]


def instance_id(sandbox_id: str) -> str:
    """Return a name that Firecracker and its jailer take: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9-]", "-", sandbox_id)[:ID_LIMIT]


def own_arguments(table: Table, api: Path) -> list[str]:
    """Arguments of Firecracker itself. There is an option for no filter only: without it there is one."""
    return [
        *("--api-sock", str(api)),
        *("--level", "Debug" if table.enable_debug else "Warning"),
        *(() if table.confined else ("--no-seccomp",)),
    ]


def command_line(table: Table, spec: VmSpec, api: Path) -> list[str]:
    """Build the arguments of a Firecracker without a jail."""
    return [str(table.path), "--id", instance_id(spec.sandbox_id), *own_arguments(table, api)]


def shown(spec: VmSpec) -> Privileges:
    """What a Firecracker without a jail is shown of the host for this machine: what it is asked to open."""
    template = saved_files(spec.template).values() if spec.template is not None else ()
    return machine_privileges(spec, data=map(Path, template), devices=(TUN,) if spec.taps else ())


def jailer_command_line(table: Table, spec: VmSpec, base: Path, user: int, api: Path) -> list[str]:
    """Build the arguments of the jailer, which becomes Firecracker: same process, same cgroup.

    base: the directory below which the jail is made. Nothing is asked of cgroups: the process is born in its
    sandbox's.
    """
    assert table.jailer_path is not None
    return [
        str(table.jailer_path),
        *("--id", instance_id(spec.sandbox_id)),
        *("--exec-file", str(table.path)),
        *("--uid", str(user), "--gid", str(user)),
        *("--chroot-base-dir", str(base)),
        *("--resource-limit", f"no-file={NO_FILE}"),
        "--",
        *own_arguments(table, api),
    ]


def jail_root(table: Table, spec: VmSpec, base: Path) -> Path:
    """Return where the jailer makes a jail: below the base, by the program's name and the instance's."""
    return base / table.path.name / instance_id(spec.sandbox_id) / "root"


def files_of(spec: VmSpec) -> dict[str, Path]:
    """Name the files of the host that the machine is made from."""
    files = {"kernel": spec.kernel}
    if spec.initrd is not None:
        files["initrd"] = spec.initrd
    return files | {f"disk-{disk.id}": disk.path for disk in disks_of(spec)}


def disks_of(spec: VmSpec) -> tuple[Disk, ...]:
    """Return the disks in the guest's order: the image first."""
    image = (Disk("image", spec.image, read_only=True),) if spec.image is not None else ()
    return (*image, *spec.disks)


def spares_of(table: Table, spec: VmSpec) -> tuple[Disk, ...]:
    """Name the disks without content that are there to be filled later: Firecracker plugs none.

    Whether a drive may be written is settled before the machine starts, and what comes later is an image.
    There are none in a jail, where nothing of the host appears later.
    """
    if table.jailer_path is not None:
        return ()
    return tuple(Disk(spare(number), Path(EMPTY), read_only=True) for number in range(spec.spare_disks))


def node_of(spec: VmSpec, number: int) -> str:
    """Tell a spare disk's node in the guest, which names its disks in the order of their description."""
    return f"/dev/vd{chr(ord('a') + len(disks_of(spec)) + number)}"


def requests(table: Table, spec: VmSpec, places: Places) -> Iterator[Request]:
    """Describe the machine, in the order that Firecracker's documentation uses.

    Raises:
        LaunchError: the kernel's command line is too long.
    """
    boot = {
        "kernel_image_path": str(places.files[spec.kernel]),
        "boot_args": kernel_line(
            KERNEL_PARAMETERS, spec, quiet=not table.enable_debug, partitioned=is_partitioned(spec.image)
        ),
    }
    if spec.initrd is not None:
        boot["initrd_path"] = str(places.files[spec.initrd])
    yield "naming the kernel", "/boot-source", boot
    yield from size(table, spec)
    for disk in disks_of(spec):
        yield f"adding the disk {disk.id}", f"/drives/{disk.id}", drive(table, disk, places.files[disk.path])
    for disk in spares_of(table, spec):
        yield "adding a disk for later", f"/drives/{disk.id}", drive(table, disk, disk.path)
    vsock = {"guest_cid": GUEST_CID, "uds_path": str(places.vsock)}
    yield "adding the way to the agent", "/vsock", vsock
    for tap in spec.taps:
        yield f"adding the network device {tap.id}", f"/network-interfaces/{tap.id}", interface(table, tap)
    yield "adding the source of random numbers", "/entropy", {}


def size(table: Table, spec: VmSpec) -> Iterator[Request]:
    """Describe the processors and the memory."""
    body: Json = {"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib}
    if table.enable_hugepages:
        body["huge_pages"] = "2M"
    yield "sizing the machine", "/machine-config", body
    if table.disable_nested_virtualization:
        yield "hiding the processor's virtualization", "/cpu-config", {"cpuid_modifiers": NOT_NESTED}


def drive(table: Table, disk: Disk, path: Path) -> Json:
    """Describe a block device; none is the root device, because the kernel's command line names the root."""
    config: Json = {
        "drive_id": disk.id,
        "path_on_host": str(path),
        "is_root_device": False,
        "is_read_only": disk.read_only,
    }
    if limits := rate_limiter(table):
        config["rate_limiter"] = limits
    return config


def interface(table: Table, tap: Tap) -> Json:
    """Describe a network device; what it receives and what it sends are limited each by itself."""
    config: Json = {"iface_id": tap.id, "host_dev_name": tap.name, "guest_mac": tap.mac}
    if limits := bandwidth_limiter(table.rx_rate_limiter_max_rate):
        config["rx_rate_limiter"] = limits
    if limits := bandwidth_limiter(table.tx_rate_limiter_max_rate):
        config["tx_rate_limiter"] = limits
    return config


def filling(drive_id: str, path: Path) -> Json:
    """Describe what a disk holds from now on."""
    return {"drive_id": drive_id, "path_on_host": str(path)}


def saved_files(directory: Path) -> Json:
    """Name the files of a saved machine."""
    return {"snapshot_path": str(directory / "state"), "mem_file_path": str(directory / "memory")}


def restoring(template: Path, spec: VmSpec, places: Places) -> Json:
    """Describe how a saved machine is restored: with its own socket and taps, and paused.

    Its memory is mapped, and read when it is used: the file must stay as it is.
    """
    files = saved_files(template)
    body: Json = {
        "snapshot_path": files["snapshot_path"],
        "mem_backend": {"backend_type": "File", "backend_path": files["mem_file_path"]},
        "resume_vm": False,
        "vsock_override": {"uds_path": str(places.vsock)},
    }
    if spec.taps:
        body["network_overrides"] = [{"iface_id": tap.id, "host_dev_name": tap.name} for tap in spec.taps]
    return body
