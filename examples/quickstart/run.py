"""The first container in a virtual machine, a unikernel after it, and the proof of what confines them.

Builds the guest image, starts a containerd of its own, runs a container through io.containerd.kata.v2 and
shows the guest's kernel, the configuration in force, what the kernel says of each process of the pod, and
that every thread of the runtime and of the VMM is filtered. Run it as root, through `make run`; a second run
reuses everything.

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
    zygote = start_zygote(config)
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
        if zygote:
            subprocess.run([BIN / "kata-ctl", "zygote", "stop"], check=False, stdout=subprocess.DEVNULL)


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


def start_zygote(config: Path) -> bool:
    """Start the process that forks shims; False where it runs already, or cannot: shims start without it."""
    command = [BIN / "kata-ctl", "zygote"]
    if subprocess.run([*command, "status"], check=False, capture_output=True).returncode == 0:
        return False
    environment = {**os.environ, "KATA_CONF_FILE": str(config)}
    started = subprocess.run([*command, "start"], check=False, stdout=subprocess.DEVNULL, env=environment)
    return started.returncode == 0


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
    """The kernel's word about the processes of the pod, and their threads; returns 1 if there is none."""
    answer = subprocess.run(
        [BIN / "kata-ctl", "confinement", "--json", CONTAINER], capture_output=True, text=True, check=False
    )
    if not answer.stdout:
        console.print(answer.stderr, style="red", markup=False)
        return 1
    (sandbox,) = json.loads(answer.stdout)
    step("what each process is on the host: the kernel's word in /proc")
    processes = Table("process", "uid", "capabilities", "own namespaces", "root", "score")
    for process in sandbox["processes"]:
        processes.add_row(*process_cells(process))
    console.print(processes)
    step("seccomp of each thread: the kernel's word in /proc, and its own copy of each filter, followed")
    threads = Table("process", "thread", "tid", "seccomp mode", "filters", "calls", "score")
    for process in sandbox["processes"]:
        if process["role"] in ("shim", "qemu"):
            for thread in process["threads"]:
                threads.add_row(process["role"], *cells(thread))
    console.print(threads)
    console.print("    calls: let through, with all arguments or some; score: lower is better")
    for owned in sandbox["owned"]:
        console.print(
            f"    a guest that owns {owned['role']}: score {owned['score']:g} with what others do for it"
        )
    console.print(
        "    kata-ctl confinement shows more, and what such a guest can open, connect, mount and run"
    )
    return answer.returncode


def process_cells(process: dict[str, Any]) -> tuple[str, ...]:
    """A process's row."""
    held = max((len(names) for names in process["capabilities"].values()), default=0)
    own = [name for name, whose in process["namespaces"].items() if whose == "own"]
    surface = process["seccomp"]["surface"]
    return (
        process["role"],
        colored(str(process["users"][1]), good=0 not in process["users"]),
        colored(str(held or "none"), good=not held),
        " ".join(own) or "none",
        process["root"],
        f"{surface['score']:g}" if surface else "-",
    )


def colored(text: str, *, good: bool) -> str:
    """A cell in green or red."""
    return f"[{'green' if good else 'red'}]{text}[/]"


MODES = {0: "disabled", 1: "strict", 2: "filter"}


def cells(thread: dict[str, Any]) -> tuple[str, ...]:
    """A thread's row, without its process."""
    mode = colored(f"{thread['mode']} ({MODES.get(thread['mode'], 'unknown')})", good=thread["mode"] == 2)
    surface = thread["surface"]
    measured = (str(surface["allowed"]), f"{surface['score']:g}") if surface else ("-", "-")
    return thread["name"], str(thread["tid"]), mode, str(thread["filters"]), *measured


if __name__ == "__main__":
    sys.exit(main())
