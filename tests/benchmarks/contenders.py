"""The machines that are compared: the in-process one in a process of its own, and QEMU's microvm and q35.

All get the same kernel, files and devices, and the same kernel parameters as far as the machines allow.
QEMU's microvm has a clock and ACPI, as ours has: without, its guest searches for seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_hypervisor import vhost_vsock, virtiofsd
from kata_hypervisor.contract import SHARED_DIRECTORY_TAG

CHILD = Path(__file__).with_name("in_process.py")
CACHE = "auto"
QUEUE_SIZE = 1024
GUEST_MAC = "02:00:00:00:00:01"
HOST_ADDRESS, GUEST_ADDRESS, PREFIX = "10.77.0.1", "10.77.0.2", 24

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TAP = "bench0"

PARAMETERS = (
    *("console=ttyS0", "reboot=k", "panic=-1", "tsc=reliable", "no_timer_check", "random.trust_cpu=on"),
    *("cryptomgr.notests", "rcupdate.rcu_expedited=1", "8250.nr_uarts=1", "quiet"),
)
QEMU = "qemu-system-x86_64"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a machine is given. image: the root file system. disk: a block device that it may write. template:
    where it begins; saved_to: where it is saved at its end; of the in-process machine only.
    """

    kernel: Path
    initrd: Path
    shared: Path
    image: Path | None = None
    disk: Path | None = None
    network: bool = False
    template: Path | None = None
    saved_to: Path | None = None
    memory_mib: int = 256
    vcpus: int = 1


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that was started. pid: the process that holds it. cid: its vsock id. begun: when, by the
    monotonic clock. finish: ends it, and returns what it has counted itself."""

    pid: int
    cid: int
    begun: float
    finish: Callable[[], Mapping[str, float]]


class ContenderError(Exception):
    """A machine did not start."""


@contextlib.contextmanager
def in_process(setting: Setting, directory: Path) -> Iterator[Running]:
    """Our machine, in a process that has loaded its modules, as the shim has."""
    with contextlib.ExitStack() as stack:
        taps = [stack.enter_context(_tap())] if setting.network else []
        more = {"taps": taps, "parameters": PARAMETERS, "directory": directory}
        described = json.dumps(asdict(setting) | more, default=str)
        child = subprocess.Popen(
            [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=taps
        )
        stack.enter_context(child)
        stack.callback(child.kill)
        assert child.stdin is not None
        assert child.stdout is not None
        _expect(child, "loaded")
        begun = time.monotonic()
        child.stdin.write(f"{described}\n".encode())
        child.stdin.flush()
        cid = int(_expect(child, "runs"))

        def finish() -> Mapping[str, float]:
            assert child.stdin is not None
            child.stdin.close()
            return dict(json.loads(_expect(child, "counted")))

        yield Running(child.pid, cid, begun, finish)


def _expect(child: subprocess.Popen[bytes], word: str) -> str:
    assert child.stdout is not None
    line = child.stdout.readline().decode()
    if not line.startswith(word):
        raise ContenderError(f"the in-process machine wrote {line!r}, not {word}")
    return line.removeprefix(word).strip()


@contextlib.contextmanager
def qemu(machine: str, setting: Setting, directory: Path) -> Iterator[Running]:
    """QEMU's `machine`: microvm or q35, confined as our configuration confines it."""
    with contextlib.ExitStack() as stack:
        tap = stack.enter_context(_tap()) if setting.network else None
        reserved = vhost_vsock.open_device()
        if reserved is None:
            raise ContenderError("this host has no /dev/vhost-vsock")
        vsock, cid = reserved
        stack.callback(os.close, vsock)
        begun = time.monotonic()
        files = stack.enter_context(_virtiofsd(setting.shared, directory))
        command = _qemu_command(machine, setting, vsock, cid, files, tap)
        passed = [vsock, files, *([tap] if tap is not None else [])]
        log = stack.enter_context((directory / "qemu.log").open("w+b"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, pass_fds=passed
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

        def finish() -> Mapping[str, float]:
            if process.poll() is not None:
                raise ContenderError(f"{machine} ended: {(directory / 'qemu.log').read_text()[-2000:]}")
            return {}

        yield Running(process.pid, cid, begun, finish)


def _qemu_command(
    machine: str, setting: Setting, vsock: int, cid: int, files: int, tap: int | None
) -> list[str]:
    microvm = machine == "microvm"
    bus = "device" if microvm else "pci"
    board = (
        "microvm,rtc=on,acpi=on,pcie=off,usb=off" if microvm else "q35,usb=off,vmport=off,smbus=off,sata=off"
    )
    parameters = [*PARAMETERS, *(("pci=off",) if microvm else ())]
    parameters += ["root=/dev/vda", "rootfstype=erofs", "ro"] if setting.image else []
    command = [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", SANDBOX),
        *("-object", f"memory-backend-memfd,id=memory,size={setting.memory_mib}M,share=on"),
        *("-machine", f"{board},memory-backend=memory", "-accel", "kvm", "-cpu", "host"),
        *("-smp", f"cpus={setting.vcpus}", "-m", f"{setting.memory_mib}M", "-bios", "qboot.rom"),
        *("-kernel", str(setting.kernel), "-initrd", str(setting.initrd), "-append", " ".join(parameters)),
        *("-serial", "null", "-device", f"vhost-vsock-{bus},vhostfd={vsock},guest-cid={cid}"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", f"virtio-rng-{bus},rng=entropy", "-chardev", f"socket,id=files,fd={files}"),
        *("-device", f"vhost-user-fs-{bus},chardev=files,tag={SHARED_DIRECTORY_TAG},queue-size={QUEUE_SIZE}"),
    ]
    if microvm:
        command += ["-global", "virtio-mmio.force-legacy=false"]
    for name, path, access in (("image", setting.image, "on"), ("disk", setting.disk, "off")):
        if path is not None:
            source = f"file.driver=file,file.filename={path}"
            command += ["-blockdev", f"driver=raw,node-name={name},read-only={access},{source}"]
            command += ["-device", f"virtio-blk-{bus},drive={name}"]
    if tap is not None:
        command += ["-netdev", f"tap,id=network,fd={tap},vhost=on"]
        command += ["-device", f"virtio-net-{bus},netdev=network,mac={GUEST_MAC}"]
    return command


@contextlib.contextmanager
def _virtiofsd(shared: Path, directory: Path) -> Iterator[int]:
    """Serve a directory; yields the descriptor of a connection for QEMU."""
    daemon = next(path for path in VIRTIOFSD_PLACES if path.exists())
    argv = virtiofsd.command_line(daemon, virtiofsd.dialect_of(daemon), shared, CACHE)
    listener, connection = virtiofsd.rendezvous(directory)
    with connection:
        with listener:
            target = listener.fileno()
            process = subprocess.Popen(
                [f"--fd={target}" if word.startswith("--fd=") else word for word in argv],
                pass_fds=[target],
                stdin=subprocess.DEVNULL,
            )
        try:
            yield connection.fileno()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


@contextlib.contextmanager
def _tap() -> Iterator[int]:
    """A tap with the host's address, for one machine."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", TAP.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(descriptor, TUNSETIFF, request)
        for argv in (("address", "add", f"{HOST_ADDRESS}/{PREFIX}", "dev", TAP), ("link", "set", TAP, "up")):
            subprocess.run(["ip", *argv], check=True)
        yield descriptor
    finally:
        os.close(descriptor)


def memory_of(pid: int) -> dict[str, float]:
    """Private and proportional memory in MiB of a process, without the guest's."""
    private = proportional = 0
    counted = True
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if "-" in name:  # the first line of a mapping
            counted = "memfd:" not in rest
        elif counted and name in ("Private_Clean", "Private_Dirty"):
            private += int(rest.split()[0])
        elif counted and name == "Pss":
            proportional += int(rest.split()[0])
    return {"private_mib": private / 1024, "proportional_mib": proportional / 1024}


def exits_of(pid: int) -> int:
    """Exits of a process's virtual machine so far, those included that the kernel handles itself."""
    threads = {path.name for path in Path(f"/proc/{pid}/task").iterdir()}  # it has its maker's number
    places = Path("/sys/kernel/debug/kvm").glob("*-*")
    return sum(
        int((place / "exits").read_text()) for place in places if place.name.partition("-")[0] in threads
    )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, for disks, sockets and what is shared."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        yield Path(name)


CONTENDERS: Mapping[str, Callable[[Setting, Path], contextlib.AbstractContextManager[Running]]] = {
    "dragonball": in_process,
    "microvm": lambda setting, directory: qemu("microvm", setting, directory),
    "q35": lambda setting, directory: qemu("q35", setting, directory),
}
OURS = "dragonball"


def order(round_number: int) -> Sequence[str]:
    """All of them, in another order each round, so that none is always first."""
    names = list(CONTENDERS)
    turn = round_number % len(names)
    return names[turn:] + names[:turn]
