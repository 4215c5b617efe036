"""The contract that every hypervisor driver keeps.

A driver turns a `VmSpec` into a running virtual machine whose confinement the kernel has confirmed, in two
steps. `prepare` does all that takes a dangerous system call: processes are started, files and devices opened,
memory mapped; the guest has not run an instruction. The runtime then seals its own process, and `run` lets
the guest go. A driver promises: every thread of the VMM that exists is in the seccomp state that the
configuration asks for when `prepare` and when `run` return; a child that dies is seen at once; `stop` leaves
no process and no file behind, at any stage; after `prepare` it needs no system call but those of the policy's
features `seal_features`. It does not promise that the guest is ready: that is for the agent's client to find
out. What a driver cannot do, its `capabilities` say, and it refuses.
"""

from __future__ import annotations

import abc
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kata_agent.transport import GuestTransport
from kata_hypervisor.errors import ConfinementError, HypervisorError, NotSupportedError
from kata_hypervisor.host import Child, ExitStatus
from kata_hypervisor.verity import Verity

__all__ = [
    "CRASHED",
    "BlockFile",
    "Capabilities",
    "Disk",
    "Hypervisor",
    "MachineSize",
    "NetTap",
    "SharedDirectory",
    "Tap",
    "UnikernelCapabilities",
    "UnikernelSpec",
    "UnikernelVmm",
    "VmExit",
    "VmSpec",
    "Vmm",
    "VmmProcess",
    "check_size",
    "check_supported",
    "check_unikernel",
]

SHARED_DIRECTORY_TAG = "kataShared"

CRASHED = signal.SIGABRT
"""What ends a unikernel that does what it must not, as seen from outside."""


class SharedDirectory(NamedTuple):
    """A directory of the host that the guest mounts over virtio-fs.

    path: absolute path on the host, as seen by the process that serves it.
    tag: the name under which the guest mounts it.
    """

    path: Path
    tag: str = SHARED_DIRECTORY_TAG


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device of the guest.

    id: its name for the VMM, [A-Za-z0-9_]+. path: a file or device of the host; one of a device that is
    plugged in later is /dev/block/MAJOR:MINOR.
    """

    id: str
    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Tap:
    """A network device of the guest, on a tap of the host.

    id: its name for the VMM, [A-Za-z0-9_]+. name: the tap's, in the network namespace in which the VMM runs.
    mac: the guest's address, "02:00:00:00:00:01". fds: the tap's open queues, the caller's to close after
    `prepare`; empty where the VMM opens the tap by its name. mtu: bytes of the guest's largest packet, the
    Ethernet header not counted.
    """

    id: str
    name: str
    mac: str
    fds: tuple[int, ...] = ()
    mtu: int = 1500


class MachineSize(NamedTuple):
    """How large a machine is: number of virtual CPUs, and its memory in MiB."""

    vcpus: int
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.vcpus} vCPUs and {self.memory_mib} MiB"


MEMORY_STEP_MIB = 128
"""By multiples of this a machine's memory grows: the memory that a guest's kernel takes as one block."""


class Capabilities(NamedTuple):
    """What a driver can do. What it cannot, it refuses with NotSupportedError.

    agent: its guests run an agent that is reached over `transport`. file_sharing: directories of the host.
    disks: block devices at the start. block_hotplug: and later. device_hotplug: block devices of the host
    later, which may be written. device_nodes: it opens these by a path, not as a descriptor. taps: network
    devices. tap_descriptors: taps as open descriptors; without it, by name. tap_hotplug: network devices
    later. pause, resize, snapshot: the methods of these names. restore: start from what `snapshot` wrote
    (`VmSpec.template`).
    """

    agent: bool = True
    file_sharing: bool = False
    disks: bool = False
    block_hotplug: bool = False
    device_hotplug: bool = False
    device_nodes: bool = False
    taps: bool = False
    tap_descriptors: bool = False
    tap_hotplug: bool = False
    pause: bool = False
    resize: bool = False
    snapshot: bool = False
    restore: bool = False


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A virtual machine, described without naming a driver.

    sandbox_id: name of the sandbox, at most 64 characters of [A-Za-z0-9._-].
    directory: the sandbox's private directory on the host (mode 0700), for sockets.
    vcpus, memory_mib: number of virtual CPUs and guest memory in MiB at boot.
    most: the size up to which it may grow while it runs, its memory by multiples of MEMORY_STEP_MIB; None for
        a machine that keeps its size.
    kernel, initrd, image: absolute paths; `image` is the guest's root filesystem, given as a read-only disk.
    verity: the hashes by which the guest's kernel checks the image, or None.
    kernel_parameters: parameters of the kernel command line that do not depend on the driver, in order; the
        driver puts its own (console, root device) before them, so that these win.
    shared: the directory shared with the guest, or None.
    disks, taps: further devices; disks come after the image, in order.
    spare_disks, spare_taps: how many more may be plugged in at a time while it runs.
    template: a directory that `snapshot` of the same driver wrote. A machine of the same size, command line
        and devices goes on from there when it runs; another one is booted, and `warnings` says what differs.
        A template that is damaged, or of another kernel, image, host or version, is refused. Nothing is
        written to it, and it must stay as it is while the machine lives.
    saved_to: the empty directory that `snapshot` will be given, or None: a sealed process must know it
        before. Behind such a machine's shared directory and disks is nothing yet: they are each copy's own.
    """

    sandbox_id: str
    directory: Path
    vcpus: int
    memory_mib: int
    kernel: Path
    most: MachineSize | None = None
    initrd: Path | None = None
    image: Path | None = None
    rootfs_type: str = "erofs"
    verity: Verity | None = None
    kernel_parameters: tuple[str, ...] = ()
    shared: SharedDirectory | None = None
    disks: tuple[Disk, ...] = ()
    taps: tuple[Tap, ...] = ()
    spare_disks: int = 0
    spare_taps: int = 0
    template: Path | None = None
    saved_to: Path | None = None

    @property
    def later_memory_mib(self) -> int:
        """How much memory may be plugged in while it runs."""
        return self.most.memory_mib - self.memory_mib if self.most is not None else 0


class BlockFile(NamedTuple):
    """A file or device of the host as a unikernel's block device. descriptor: open for reading, or both."""

    descriptor: int
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NetTap:
    """A tap as a unikernel's network device.

    descriptor: open, not blocking; -1 where the monitor opens the tap by its name. mac: the guest's six
    bytes. name: the tap's, in the network namespace in which the monitor runs.
    """

    descriptor: int
    mac: bytes
    mtu: int = 1500
    name: str = ""


class UnikernelCapabilities(NamedTuple):
    """What a monitor of unikernels can do. What it cannot, it refuses with NotSupportedError.

    initrd: a file beside the unikernel's. block: a block device. tap_descriptors, tap_names: a network
    device, as an open tap or by the tap's name. tap_header: whether its frames have a virtio_net_hdr before
    them. pause: `pause` and `resume`. exit_status: the unikernel can
    end with a status of its own; else it is 0 whenever it ends by itself.
    """

    initrd: bool = False
    block: bool = True
    tap_descriptors: bool = False
    tap_names: bool = False
    tap_header: bool = True
    pause: bool = True
    exit_status: bool = True


@dataclass(frozen=True, slots=True)
class UnikernelSpec:
    """A unikernel to run, described without naming a monitor.

    sandbox_id, directory: as in VmSpec. name: its file's, for sentences. file, initrd: descriptors of files.
    command_line: what it is started with. output: descriptor of a stream socket or pipe, for what it
    prints. block, net: its devices, which get the names that the unikernel declares. unconfined: whether its
    container came without a seccomp profile.
    """

    sandbox_id: str
    directory: Path
    memory_mib: int
    name: str
    file: int
    output: int
    command_line: str = ""
    block: BlockFile | None = None
    net: NetTap | None = None
    initrd: int | None = None
    unconfined: bool = False


class VmmProcess(NamedTuple):
    """A process that serves the virtual machine, for verification and metrics. role: "vmm" or "virtiofsd"."""

    role: str
    child: Child


@dataclass(frozen=True, slots=True)
class VmExit:
    """The end of a virtual machine.

    reason: one readable line, such as "qemu was killed by SIGKILL".
    process: which process exited first ("qemu", "virtiofsd").
    status: how it exited. diagnostics: last lines of stderr and of the guest's console, by heading.
    requested: whether `stop` caused it.
    """

    reason: str
    process: str
    status: ExitStatus
    requested: bool = False
    diagnostics: Mapping[str, str] = field(default_factory=dict)


class Vmm(abc.ABC):
    """Who runs one virtual machine, once it is prepared. Every method may be cancelled."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Let the guest run, once, and verify the confinement of what exists then. Raises as `prepare`."""

    @property
    @abc.abstractmethod
    def seal_features(self) -> frozenset[str]:
        """The features of the seccomp policy that this process needs for the machine after `prepare`."""

    def seal_vcpus(self, install: Callable[[], object]) -> None:  # noqa: B027 - most drivers have none
        """Between `prepare` and `run`: what every virtual CPU's thread of this process calls first.

        install: puts a second filter on the calling thread, and raises where it cannot. Without effect where
        the VMM is another process.
        """

    @abc.abstractmethod
    async def stop(self) -> None:
        """End the machine and its helpers; idempotent, also after a failed or cancelled `prepare`."""

    @abc.abstractmethod
    async def wait(self) -> VmExit:
        """Return when the machine has ended, for whatever reason: any helper's death ends it too."""

    @abc.abstractmethod
    async def pause(self) -> None:
        """Stop all virtual CPUs. Raises NotSupportedError where the driver cannot."""

    @abc.abstractmethod
    async def resume(self) -> None:
        """Let the virtual CPUs run again."""

    @abc.abstractmethod
    async def verify_confinement(self) -> None:
        """Read the confinement of every VMM thread again. Raises ConfinementError as `run` does."""

    async def _verify_changed(self) -> None:
        """Read what a machine that has got something is confined to; one that is less has to end."""
        try:
            await self.verify_confinement()
        except ConfinementError:
            await self.stop()
            raise

    @property
    @abc.abstractmethod
    def processes(self) -> tuple[VmmProcess, ...]:
        """The processes that serve the machine, the VMM itself first."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know about this machine, one line each. Valid after `prepare`."""
        return ()

    @property
    @abc.abstractmethod
    def console_tail(self) -> str:
        """The last lines that the guest wrote to its console (at most 8 KiB)."""


class Hypervisor(Vmm):
    """One virtual machine with a kernel, and an agent that is reached through it."""

    # What this machine's driver can do, with its configuration.
    capabilities: Capabilities

    @abc.abstractmethod
    async def prepare(self, spec: VmSpec) -> None:
        """Make the machine, and verify the confinement of the VMM's processes; the guest does not run yet.

        Raises:
            LaunchError: the VMM or a helper could not be started or exited at once; the message's first line
                says which, its exit status or signal and the last line of its stderr.
            ConfinementError: the kernel reports another confinement than the configuration asks for; nothing
                is left running.
            HostUnfitError: the host lacks what the configuration names.
            NotSupportedError: the driver cannot make such a machine.
            SnapshotError: `spec.template` is damaged, or of another kernel, image, host or version.
        """

    async def add_disk(self, disk: Disk) -> None:
        """Plug a block device into the running machine; afterwards the guest has it.

        Raises:
            HypervisorError: there is no room for another, it cannot be opened, or the guest does not take it.
        """
        raise self._unsupported("plug a disk into a running machine")

    async def remove_disk(self, name: str) -> None:
        """Take a disk away that was plugged in, by its id. The guest has unmounted it.

        Raises:
            HypervisorError: there is no such disk, or the guest does not let it go.
        """
        raise self._unsupported("take a disk out of a running machine")

    def disk_node(self, name: str) -> str:
        """Tell by what the guest's agent finds a disk that was plugged in: its node, or as udev calls it."""
        return f"/dev/disk/by-id/virtio-{name}"

    async def add_tap(self, tap: Tap) -> None:
        """Plug a network device into the running machine.

        tap.fds: the machine's from here on, also on failure; with a header (TUNSETVNETHDRSZ) of 12 bytes.

        Raises:
            HypervisorError: as `add_disk`.
        """
        raise self._unsupported("plug a network device into a running machine")

    async def remove_tap(self, name: str) -> None:
        """Take a network device away that was plugged in, by its id. Raises as `remove_disk`."""
        raise self._unsupported("take a network device out of a running machine")

    async def resize(self, size: MachineSize) -> MachineSize:
        """Change the size of the running machine; every thread's confinement is verified afterwards.

        size: no less than at boot, no more than `VmSpec.most`. Returns what the machine has then, which is
        not what was asked for where the guest does not take it, or does not let it go, while the host is
        patient. The guest's kernel may still have to switch it on.

        Raises:
            HypervisorError: the VMM refused, or the machine was not made for that size.
            ConfinementError: as `run`; the machine was stopped.
        """
        raise self._unsupported("change the size of a running machine")

    async def snapshot(self, directory: Path) -> None:
        """Write the state of the paused machine into `VmSpec.saved_to`, for the `template` of later machines.

        The machine stays paused; the caller resumes or stops it. Raises SnapshotError where it cannot be
        written, and then what is in the directory is of no use.
        """
        raise self._unsupported("snapshot a machine")

    @classmethod
    def describe_template(cls, spec: VmSpec) -> Mapping[str, str]:
        """Say what `spec.template` is a template of, by name: "number of vCPUs", "2".

        Reads files; needs no machine. Raises SnapshotError as `prepare` does.
        """
        raise NotSupportedError(f"the driver {cls.__name__} has no templates")

    def _unsupported(self, action: str) -> NotSupportedError:
        return NotSupportedError(f"the driver {type(self).__name__} cannot {action}")

    @property
    @abc.abstractmethod
    def transport(self) -> GuestTransport:
        """How to reach the guest's ports. Valid after `prepare`."""


class UnikernelVmm(Vmm):
    """One virtual machine that is a unikernel: what it prints is its output, its end has an exit status."""

    # What this monitor can do, with its configuration.
    capabilities: UnikernelCapabilities

    @abc.abstractmethod
    async def prepare(self, spec: UnikernelSpec) -> None:
        """As with a Hypervisor; the descriptors in the spec are the caller's, who closes them after
        `prepare`.

        Raises:
            UnikernelError: the file is no unikernel for this monitor, or declares other devices.
        """


def check_supported(driver: str, capabilities: Capabilities, spec: VmSpec) -> None:
    """Raise NotSupportedError when a machine needs what its driver cannot do."""
    wanted = (
        ("share a directory with the guest", spec.shared is not None, capabilities.file_sharing),
        ("give the guest further disks", bool(spec.disks), capabilities.disks),
        ("give the guest a network device", bool(spec.taps), capabilities.taps),
        (
            "take a tap as descriptors",
            any(tap.fds for tap in spec.taps),
            capabilities.tap_descriptors,
        ),
        ("let a machine grow", spec.most is not None, capabilities.resize),
        ("start a machine from a template", spec.template is not None, capabilities.restore),
    )
    for action, needed, able in wanted:
        if needed and not able:
            raise NotSupportedError(f"the virtual machine of {spec.sandbox_id}: {driver} cannot {action}")


def check_size(spec: VmSpec, size: MachineSize) -> None:
    """Raise HypervisorError for a size that a machine was not made for."""
    low, high = (
        MachineSize(spec.vcpus, spec.memory_mib),
        spec.most or MachineSize(spec.vcpus, spec.memory_mib),
    )
    if (
        low.vcpus <= size.vcpus <= high.vcpus
        and low.memory_mib <= size.memory_mib <= high.memory_mib
        and (size.memory_mib - low.memory_mib) % MEMORY_STEP_MIB == 0
    ):
        return
    raise HypervisorError(
        f"cannot resize the virtual machine to {size.vcpus} vCPUs and {size.memory_mib} MiB: it was made for "
        f"{low.vcpus} to {high.vcpus} vCPUs, and for {low.memory_mib} to {high.memory_mib} MiB in steps of "
        f"{MEMORY_STEP_MIB}"
    )


def check_unikernel(monitor: str, capabilities: UnikernelCapabilities, spec: UnikernelSpec) -> None:
    """Raise NotSupportedError when a unikernel needs what its monitor cannot do."""
    net = spec.net
    wanted = (
        ("give it an initrd", spec.initrd is not None, capabilities.initrd),
        ("give it a block device", spec.block is not None, capabilities.block),
        ("take a tap as a descriptor", net is not None and net.descriptor >= 0, capabilities.tap_descriptors),
        ("open a tap by its name", net is not None and net.descriptor < 0, capabilities.tap_names),
    )
    for action, needed, able in wanted:
        if needed and not able:
            raise NotSupportedError(f"the unikernel of {spec.sandbox_id}: {monitor} cannot {action}")
