"""The first container in a virtual machine, a unikernel after it, and the proof of what confines them.

Builds the guest image, starts a containerd of its own, runs a container through io.containerd.kata.v2 and
shows the guest's kernel, the configuration in force, and how the kernel says that every thread of the runtime
and of the VMM is filtered. Run it as root, through `make run`; a second run reuses everything.

Exit status: 0 it ran, 1 it did not, 2 this host cannot run the hypervisor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import busybox_image
from private_containerd import PrivateContainerd
from selection import DRAGONBALL, QEMU, RIG, configure, find_obstacle
from unikernel_run import CONTAINER as UNIKERNEL
from unikernel_run import run_unikernel

HOME = Path("/var/lib/kata-quickstart")
RUN = Path("/run/kata-quickstart")
CONTAINER = "quickstart"
BIN = Path(sys.executable).parent

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--image", type=Path, default=Path("/var/lib/kata-containers/image"), help="guest image directory"
    )
    parser.add_argument(
        "--seccompsandbox",
        default=None,
        help="use this value instead of the shipped one, to see the difference",
    )
    parser.add_argument(
        "--hypervisor",
        choices=(QEMU, DRAGONBALL),
        default=QEMU,
        help="what runs the container's machine: QEMU, or the runtime's own process (default: %(default)s)",
    )
    parser.add_argument("--home", type=Path, default=HOME, help="where it keeps its files (%(default)s)")
    arguments = parser.parse_args()
    home: Path = arguments.home
    if arguments.seccompsandbox is not None and arguments.hypervisor != QEMU:
        parser.error(f"--seccompsandbox is of {QEMU}")
    if os.geteuid() != 0:
        console.print("[red]make run needs root: it starts containerd and virtual machines")
        return 1
    if (obstacle := find_obstacle(arguments.hypervisor)) is not None:
        step(f"this host runs no virtual machine in the runtime's own process: {obstacle}")
        console.print(f"    the rig, an emulated host, does: {RIG}", markup=False)
        return 2
    build_image(arguments.image)
    settings: dict[str, str] = {}
    if arguments.hypervisor == QEMU:
        settings["accelerator"] = choose_accelerator()
    if arguments.seccompsandbox is not None:
        settings["seccompsandbox"] = arguments.seccompsandbox
    config = write_configuration(home, configure(arguments.hypervisor, arguments.image, **settings))
    install_shim(home / "bin")
    containerd = PrivateContainerd(
        home / "containerd", RUN, shim_directory=home / "bin", environment={"KATA_CONF_FILE": str(config)}
    )
    containerd.start()
    try:
        import_image(containerd)
        status = run_container(containerd, config)
        if status == 0 and os.path.exists("/dev/kvm"):
            status = run_unikernel(containerd, home, BIN / "kata-ctl", arguments.image, console)
        return status
    finally:
        for name in (CONTAINER, UNIKERNEL):
            containerd.run(["task", "rm", "--force", name], check=False)
            containerd.run(["container", "rm", name], check=False)
        containerd.stop()


def step(text: str) -> None:
    """Print what is done next."""
    console.print(f"[bold cyan]==>[/] {text}")


def build_image(directory: Path) -> None:
    """Build the guest image, or see that it is up to date."""
    step(f"guest image in {directory}")
    subprocess.run([BIN / "kata-ctl", "image", "build", "--output", directory], check=True)


def choose_accelerator() -> str:
    """KVM where it runs unmodified guests, else TCG, reported in one line."""
    from kata_hypervisor.kvm.probe import probe_kvm

    result = probe_kvm()
    if result.runs_unmodified_guests:
        step("KVM runs unmodified guests on this host: using it")
        return "kvm"
    step(f"no usable KVM, so QEMU emulates the processor (TCG, slower): {result.reason}")
    return "tcg"


def write_configuration(home: Path, text: str) -> Path:
    """Put the configuration where everybody may read it."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "configuration.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def install_shim(directory: Path) -> None:
    """Put the shim's launchers where the private containerd looks for them."""
    directory.mkdir(exist_ok=True)
    subprocess.run([BIN / "kata-ctl", "shim", "install", directory], check=True, stdout=subprocess.DEVNULL)


def import_image(containerd: PrivateContainerd) -> None:
    """Import the container image that is made on this machine, once."""
    if busybox_image.NAME in containerd.run(["image", "ls", "-q"]).stdout:
        return
    step(f"container image {busybox_image.NAME}, made from this machine's busybox")
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "image.tar"
        busybox_image.write_image(archive)
        containerd.run(["image", "import", str(archive)])


def run_container(containerd: PrivateContainerd, config: Path) -> int:
    """Run the container, and look at its machine while it runs."""
    step("ctr run --runtime io.containerd.kata.v2: a container in its own virtual machine")
    script = "echo guest kernel: $(uname -r); echo the container runs as $(id -un) on $(hostname); sleep 60"
    begin, logged = time.monotonic(), containerd.log_path.stat().st_size
    runtime = ("--runtime", "io.containerd.kata.v2")
    arguments = ["run", *runtime, busybox_image.NAME, CONTAINER, "sh", "-c", script]
    client = subprocess.Popen(
        containerd.command(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    lines = [line for line in (client.stdout.readline(), client.stdout.readline()) if line]
    seconds = time.monotonic() - begin
    if len(lines) < 2:
        console.print("".join(lines) + client.stdout.read(), style="red", markup=False)
        console.print(f"containerd's log: {containerd.log_path}", markup=False)
        client.wait()
        return 1
    for line in lines:
        console.print(f"    {line.rstrip()}", markup=False)
    console.print(f"    host kernel:  {platform.release()}", markup=False)
    console.print(f"    first output after {seconds:.1f} s", markup=False)
    step(f"configuration in force: {config}")
    show_warnings(containerd.log_path.read_bytes()[logged:].decode(errors="replace"))
    status = show_confinement()
    containerd.run(["task", "kill", "--signal", "SIGKILL", CONTAINER])
    client.wait()
    return status


def show_warnings(log: str) -> None:
    """What the shim warned about, out of what containerd logged since this run began."""
    for line in log.splitlines():
        if "level=warning" in line and "runtime=kata" in line:
            message = line.partition('msg="')[2].partition('" runtime=kata')[0].replace('\\"', '"')
            console.print(f"    warning: {message}", style="yellow", markup=False)


def show_confinement() -> int:
    """The kernel's word about the runtime's process and the VMM; returns 1 if there is none."""
    answer = subprocess.run(
        [BIN / "kata-ctl", "seccomp", "status", "--json", CONTAINER],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        console.print(answer.stderr, style="red", markup=False)
        return 1
    (sandbox,) = json.loads(answer.stdout)
    step("seccomp of each thread: the kernel's word in /proc, and its own copy of each filter, followed")
    table = Table("process", "thread", "tid", "seccomp mode", "filters", "calls", "score")
    for process in sandbox["processes"]:
        if process["name"] in ("shim", "qemu"):
            for thread in process["threads"]:
                table.add_row(process["name"], *cells(thread))
    console.print(table)
    console.print("    calls: let through, with all arguments or some; score: lower is better")
    console.print("    kata-ctl seccomp status shows the other processes of the sandbox too")
    return 0


def cells(thread: dict[str, Any]) -> tuple[str, ...]:
    """A thread's row, without its process."""
    mode = f"[{'green' if thread['mode'] == 2 else 'red'}]{thread['mode']} ({thread['mode_name']})"
    surface = thread["surface"]
    measured = (str(surface["allowed"]), f"{surface['score']:g}") if surface else ("-", "-")
    return thread["name"], str(thread["tid"]), mode, str(thread["filters"]), *measured


if __name__ == "__main__":
    sys.exit(main())
