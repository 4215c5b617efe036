"""QEMU's command line, as a pure function of the configuration, the machine and its descriptors.

Sources: qemu-system-x86_64(1), QEMU 7.2. Every channel to the process is a descriptor that it inherits: it
leaves no socket on disk. It stays in the foreground, where `-sandbox` may deny `fork`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata_configuration.models.qemu import QemuHypervisor as QemuTable
from kata_hypervisor.contract import SharedDirectory, Tap, VmSpec
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.privileges import KVM, NULL, Privileges, prefix_data

STDERR, MONITOR, CONSOLE, AGENT, FILESYSTEM, TAPS = 2, 3, 4, 5, 6, 7
"""Descriptors in QEMU: AGENT is the vhost-vsock device, or a socket to the agent's serial port. From TAPS on
are the queues of the taps, in their order.
"""

FIRMWARE = tuple(
    Path("/usr/share", name) for name in ("qemu", "seabios", "qboot", "qemu-efi", "ipxe", "ovmf", "OVMF")
)
"""Directories in which distributions keep QEMU's firmware."""

SERIAL_PORT_NAME = "org.kata.agent.0"
"""The virtio-serial port, below /dev/virtio-ports in the guest, on which the agent serves all its ports."""

COMMAND_LINE_LIMIT = 2047
"""Bytes of an x86 kernel's command line (COMMAND_LINE_SIZE, minus the terminator); it cuts off the rest."""

# Board devices that no guest of ours has a driver's need for: less to emulate, less to attack.
MACHINE_DEFAULTS = "usb=off,vmport=off,smbus=off,sata=off"

# The guest's memory is in no core file: QEMU marks it MADV_DONTDUMP.
NO_DUMP = "dump-guest-core=off"

# cryptomgr.notests and tsc=reliable skip work that is slow when emulated, 0.3 s of a boot of 1.9 s. panic=-1
# resets at once, and -no-reboot turns that into QEMU's end. rcu_expedited: a container's set-up waits for
# a dozen grace periods (mounts, cgroups), a tenth of a second; a guest of few CPUs loses nothing by it.
KERNEL_PARAMETERS = (
    "console=ttyS0",
    "reboot=k",
    "panic=-1",
    "tsc=reliable",
    "no_timer_check",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
)


@dataclass(frozen=True, slots=True)
class Devices:
    """What the machine is connected to.

    vsock_cid: the guest's context id when AGENT is the vhost-vsock device; None: a serial port's socket.
    image_partitioned: whether the image begins with a partition table, the root file system being the first.
    """

    vsock_cid: int | None
    image_partitioned: bool = False


def command_line(table: QemuTable, spec: VmSpec, devices: Devices) -> list[str]:
    """Build the arguments of a QEMU that waits, before the guest runs, for a command on its monitor.

    Raises:
        LaunchError: the kernel's command line is too long.
    """
    return [
        str(table.path),
        *("-name", f"sandbox-{spec.sandbox_id},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S"),
        *(("-sandbox", table.seccompsandbox) if table.confined else ()),
        *board(table, spec.vcpus, spec.memory_mib),
        *_boot(table, spec, devices),
        *_channels(),
        *_agent(devices),
        *_entropy(table.entropy_source),
        *(_image(spec.image) if spec.image else ()),
        *(_filesystem(spec.shared) if spec.shared else ()),
        *_taps(spec.taps),
    ]


def kernel_command_line(table: QemuTable, spec: VmSpec, devices: Devices) -> str:
    """Join the driver's parameters and the machine's; later ones win in the kernel.

    Raises:
        LaunchError: it is longer than the kernel reads.
    """
    parameters = [*KERNEL_PARAMETERS]
    if not table.enable_debug:
        parameters.append("quiet")
    if spec.image is not None:
        device = "/dev/vda1" if devices.image_partitioned else "/dev/vda"
        parameters += [f"root={device}", f"rootfstype={spec.rootfs_type}", "ro"]
    line = " ".join([*parameters, *spec.kernel_parameters])
    if len(line.encode()) > COMMAND_LINE_LIMIT:
        raise LaunchError(
            f"cannot boot the guest: its kernel command line has {len(line.encode())} bytes, "
            f"the kernel reads {COMMAND_LINE_LIMIT}; shorten kernel_params"
        )
    return line


def has_partition_table(image: Path) -> bool:
    """Tell whether a disk image begins with an MBR, which every GPT disk has too (as a protective one)."""
    with image.open("rb") as file:
        return file.read(512)[510:] == b"\x55\xaa"


def shown(table: QemuTable, spec: VmSpec) -> Privileges:
    """What QEMU is shown of the host for this machine: what its command line names."""
    files = [spec.kernel, *filter(None, (spec.initrd, spec.image))]
    devices = [NULL, *program_devices(table)]
    (devices if table.entropy_source.is_char_device() else files).append(table.entropy_source)
    return Privileges(tuple(files), program_data(table), tuple(dict.fromkeys(devices)))


def program_devices(table: QemuTable) -> tuple[Path, ...]:
    """The devices that QEMU opens for the processors."""
    return (KVM,) if table.accelerator == "kvm" else ()


def program_data(table: QemuTable) -> tuple[Path, ...]:
    """Where QEMU looks for its firmware and its modules."""
    return (*FIRMWARE, *prefix_data(table.path, "share/qemu", "share/qemu-firmware", "lib", "lib64"))


def option(head: str, **properties: object) -> str:
    """Write `head,key=value,...`; a comma in a value is doubled, an underscore in a key becomes a hyphen."""
    escaped = {key.replace("_", "-"): str(value).replace(",", ",,") for key, value in properties.items()}
    return ",".join([head, *(f"{key}={value}" for key, value in escaped.items())])


def board(table: QemuTable, vcpus: int, memory_mib: int) -> Iterator[str]:
    """Arguments for the machine itself: its memory, its board, its processors."""
    memory = f"{memory_mib}M"
    yield from ("-object", option("memory-backend-memfd", id="memory", size=memory, share="on", seal="on"))
    machine = f"{table.machine_type},memory-backend=memory,{MACHINE_DEFAULTS},{NO_DUMP}"
    yield from ("-machine", ",".join(filter(None, [machine, table.machine_accelerators])))
    yield from ("-accel", "kvm" if table.accelerator == "kvm" else "tcg,thread=multi")
    model = "host" if table.accelerator == "kvm" else "max"
    # What tcg emulates of it is QEMU's own, and nothing of the host's.
    hidden = "-vmx,-svm" if table.disable_nested_virtualization and table.accelerator == "kvm" else ""
    yield from ("-cpu", ",".join(filter(None, [model, hidden, table.cpu_features])))
    # No maxcpus: nothing plugs CPUs in later, and a guest pays for each that it might get.
    yield from ("-smp", f"cpus={vcpus}", "-m", memory)


def _boot(table: QemuTable, spec: VmSpec, devices: Devices) -> Iterator[str]:
    # qboot is QEMU's own minimal firmware: a tenth of a second less than SeaBIOS.
    yield from ("-bios", "qboot.rom", "-kernel", str(spec.kernel))
    if spec.initrd is not None:
        yield from ("-initrd", str(spec.initrd))
    yield from ("-append", kernel_command_line(table, spec, devices))


def _channels() -> Iterator[str]:
    yield from ("-chardev", option("socket", id="monitor", fd=MONITOR))
    yield from ("-mon", "chardev=monitor,mode=control")
    # A 16550: the kernel writes to it long before it knows virtio, so an early panic is seen.
    yield from ("-chardev", option("socket", id="console", fd=CONSOLE), "-serial", "chardev:console")


def _agent(devices: Devices) -> Iterator[str]:
    if devices.vsock_cid is not None:
        yield from ("-device", option("vhost-vsock-pci", vhostfd=AGENT, guest_cid=devices.vsock_cid))
        return
    yield from ("-device", "virtio-serial-pci,id=serial,max_ports=2")
    yield from ("-chardev", option("socket", id="agent", fd=AGENT))
    yield from ("-device", option("virtserialport", bus="serial.0", chardev="agent", name=SERIAL_PORT_NAME))


def _entropy(source: Path) -> Iterator[str]:
    yield from ("-object", option("rng-random", id="entropy", filename=source))
    yield from ("-device", option("virtio-rng-pci", rng="entropy"))


def _image(image: Path) -> Iterator[str]:
    file = {"file.driver": "file", "file.filename": image}
    yield from ("-blockdev", option("driver=raw", node_name="image", read_only="on", **file))
    yield from ("-device", option("virtio-blk-pci", drive="image"))


def _filesystem(shared: SharedDirectory) -> Iterator[str]:
    yield from ("-chardev", option("socket", id="filesystem", fd=FILESYSTEM))
    device = option("vhost-user-fs-pci", chardev="filesystem", tag=shared.tag, queue_size=1024)
    yield from ("-device", device)


def _taps(taps: tuple[Tap, ...]) -> Iterator[str]:
    first = TAPS
    for tap in taps:
        count = len(tap.fds)
        fds = ":".join(str(first + number) for number in range(count))
        first += count
        yield from ("-netdev", option("tap", id=tap.id, fds=fds))
        # An option ROM is for booting from the network. Vectors: two for each pair, and two more.
        queues = {"mq": "on", "vectors": 2 * count + 2} if count > 1 else {}
        yield from ("-device", option("virtio-net-pci", netdev=tap.id, mac=tap.mac, romfile="", **queues))
