"""The rig: an emulated host with AMD's virtualization, in which kvm-amd gives a KVM that runs any guest.

Its files are this host's, over virtio-fs: whatever is installed here is there; what it writes is forgotten.
It has vhost-vsock, vhost-net, tun, and cgroups version 2. It runs one shell script, and ends.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_hypervisor import virtiofsd
from kata_runtime.image import builder, cpio, initramfs, manifest
from kata_runtime.image.apt import Apt
from kata_runtime.image.distribution import detect
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.tree import Tree

CHECKOUT = Path(__file__).parents[2]
IMPORTED = ("agent", "configuration", "hypervisor", "runtime", "tests/support")
MODULES = (
    *("virtio_pci", "virtio_console", "virtio_rng", "fuse", "virtiofs"),
    *("kvm_amd", "vhost_vsock", "vhost_net", "tun", "overlay", "erofs", "vsock_loopback", "loop"),
    # Of a pod's network: what CNI's bridge needs, what attaches it, and what forwards ports.
    *("veth", "8021q", "ipvlan", "macvlan", "macvtap", "bridge"),
    *("sch_ingress", "cls_u32", "cls_bpf", "act_mirred", "nft_chain_nat", "nft_redir"),
)
APPLETS = ("cp", "insmod", "ip", "ln", "mkdir", "mount", "poweroff", "switch_root")
MEMORY = "4096M"
MACHINE = (
    *("-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"),
    *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-m", MEMORY, "-smp", "2"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy"),
    *("-device", "virtio-serial-pci,max_ports=3", "-chardev", "stdio,id=output,signal=off"),
    *("-device", "virtserialport,chardev=output,nr=1", "-device", "virtserialport,chardev=status,nr=2"),
    *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
)
KERNEL_PARAMETERS = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests"
FILES_LOG = "virtiofsd"

# Not every virtiofsd can serve read-only: what it sees are read-only mounts, in a namespace of its own.
SERVE = """
listener=$1 view=$2; shift 2
eval "exec 3<&$listener"
while [ "$1" != -- ]; do
    mount --bind "$1" "$view$1"
    mount -o remount,bind,ro "$view$1"
    shift
done
shift
exec "$@"
"""


class RigError(Exception):
    """The rig could not run its script to the end."""


def run(
    script: str,
    image: Path,
    deadline: float,
    echo: Callable[[bytes], object],
    *,
    stdin: int = subprocess.PIPE,
) -> int:
    """Run a shell script in the rig, as root; return its exit status.

    image: the guest image, whose kernel and packages the rig shares. deadline: seconds for all of it. echo:
    called with all output as it comes. stdin: what the script finds on the port that is its standard output.

    Raises:
        RigError: the rig did not boot, or was not done within the deadline; ends with the console's tail.
    """
    with tempfile.TemporaryDirectory(prefix="rig-") as name:
        directory = Path(name)
        (directory / "initramfs").write_bytes(_boot_archive(image, script))
        with _files(directory, [Path("/usr"), Path(sys.base_prefix), CHECKOUT, image]) as connection:
            return _boot(directory, image, connection, deadline, echo, stdin)


def in_checkout(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the script that runs a command, such as pytest, in this checkout and its Python environment."""
    # What the environment has installed may be the packages of another checkout: this may be a worktree.
    variables = {
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(str(CHECKOUT / room) for room in IMPORTED),
        **environment,
    }
    exports = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(CHECKOUT))}", f"exec {shlex.join(command)}\n"])


def _boot(
    directory: Path,
    image: Path,
    files: int,
    deadline: float,
    echo: Callable[[bytes], object],
    stdin: int,
) -> int:
    console, status = directory / "console", directory / "status"
    command = [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *MACHINE),
        *("-chardev", f"socket,id=files,fd={files}", "-chardev", f"file,id=status,path={status}"),
        *("-serial", f"file:{console}", "-kernel", str(image / builder.KERNEL)),
        *("-initrd", str(directory / "initramfs"), "-append", KERNEL_PARAMETERS),
    ]
    with subprocess.Popen(
        command,
        stdin=stdin,  # open, or QEMU would take the port for disconnected
        stdout=subprocess.PIPE,
        pass_fds=[files],
    ) as qemu:
        assert qemu.stdout is not None
        watchdog = threading.Timer(deadline, qemu.kill)
        watchdog.start()
        try:
            while output := os.read(qemu.stdout.fileno(), 1 << 16):
                echo(output)
        except BaseException:
            qemu.kill()
            raise
        finally:
            watchdog.cancel()
    answer = status.read_text().strip() if status.exists() else ""
    if not answer:
        late = f" after {deadline:g} s" if qemu.returncode == -signal.SIGKILL else ""
        logs = "".join(f"\n{path.name}:\n{_tail(path)}" for path in (directory / FILES_LOG, console))
        raise RigError(f"the rig ended{late} before its script did (qemu: {qemu.returncode}){logs}")
    return int(answer)


def _boot_archive(image: Path, script: str) -> bytes:
    """The initramfs: modules of the guest image's own kernel, our init, and the script."""
    made = manifest.read(image)
    if made is None:
        raise RigError(f"{image} has no manifest: run make image")
    wanted = [
        one for one in made.packages if one.name.startswith(("linux-image-", "linux-modules-", "busybox"))
    ]
    apt = Apt(builder.DEFAULT_CACHE / made.suite, detect().codename, made.suite)
    apt.fetch(wanted, lambda fraction: None)
    packages = Tree()
    for package in wanted:
        packages.add_package(
            apt.archives / package.file, lambda path: Kernel.keep(path) or path == initramfs.BUSYBOX
        )
    init = Path(__file__).with_name("init.sh").read_bytes()
    archive = initramfs.make(Kernel(packages), packages, init=init, modules=MODULES, applets=APPLETS)
    extra = Tree()
    extra.file("command", script.encode())
    return archive + cpio.pack(extra)


@contextmanager
def _files(directory: Path, needed: Iterable[Path]) -> Iterator[int]:
    """Serve the host's files; yields the descriptor of a connection for QEMU."""
    view = directory / "view"
    view.mkdir()
    daemon = next((path for path in VIRTIOFSD_PLACES if path.exists()), VIRTIOFSD_PLACES[0])
    serve = virtiofsd.command_line(daemon, virtiofsd.dialect_of(daemon), view, "always")
    listener, connection = virtiofsd.rendezvous(directory)
    with connection, (directory / FILES_LOG).open("wb") as log:
        with listener:
            number = listener.fileno()
            arguments = [str(number), str(view), *_mount_points(needed), "--", *serve]
            server = subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", SERVE, "sh", *arguments],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            yield connection.fileno()
        finally:
            server.terminate()
            server.wait()


def _mount_points(needed: Iterable[Path]) -> list[str]:
    """The file systems that hold these paths, each after the one that it is mounted in."""
    holders = {next(one for one in (path, *path.parents) if one.is_mount()) for path in needed}
    return [str(point) for point in sorted({Path("/"), *holders})]


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:].strip() if path.exists() else ""
