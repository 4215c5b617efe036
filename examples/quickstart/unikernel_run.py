"""The second thing that the quickstart shows: a unikernel as a container, in the runtime's own process."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import unikernel_image
from private_containerd import PrivateContainerd
from selection import DRAGONBALL, configure

CONTAINER = "quickstart-unikernel"


def run_unikernel(
    containerd: PrivateContainerd, home: Path, kata_ctl: Path, image: Path, console: Console
) -> int:
    """Compile a unikernel, run it through containerd, and show its threads; returns the exit status.

    home: where the configuration and the image are put. image: directory of the guest image, whose files the
    configuration names and the unikernel does without.
    """
    console.print(
        "[bold cyan]==>[/] a unikernel as a container: compiled now, and run in the runtime's own process"
    )
    import_image(containerd, home)
    config = write_configuration(home, image)
    arguments = ["run", "--runtime", "io.containerd.kata.v2", "--runtime-config-path", str(config)]
    begin = time.monotonic()
    client = subprocess.Popen(
        containerd.command([*arguments, unikernel_image.NAME, CONTAINER, "hello", "and", "wait"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    lines = [line for line in (client.stdout.readline(), client.stdout.readline()) if line]
    seconds = time.monotonic() - begin
    for line in lines:
        console.print(f"    {line.rstrip()}", markup=False)
    if len(lines) < 2:
        console.print(f"containerd's log: {containerd.log_path}", style="red", markup=False)
        client.wait()
        return 1
    console.print(f"    first output after {seconds:.1f} s", markup=False)
    status = show_threads(kata_ctl, console)
    containerd.run(["task", "kill", "--signal", "SIGKILL", CONTAINER])
    client.wait()
    return status


def import_image(containerd: PrivateContainerd, home: Path) -> None:
    """Compile the unikernel and import its image."""
    with tempfile.TemporaryDirectory(dir=home) as directory:
        binary, archive = Path(directory) / "hello.hvt", Path(directory) / "image.tar"
        unikernel_image.compile_unikernel(unikernel_image.TOOLS / "hello.c", binary)
        unikernel_image.write_image(archive, binary)
        containerd.run(["image", "import", str(archive)])


def write_configuration(home: Path, image: Path) -> Path:
    """The shipped configuration of the in-process machine, with this machine's paths."""
    path = home / "configuration-unikernel.toml"
    path.write_text(configure(DRAGONBALL, image), encoding="utf-8")
    path.chmod(0o644)
    return path


def show_threads(kata_ctl: Path, console: Console) -> int:
    """The kernel's word about each thread of the process in which the unikernel runs; 1 if there is none."""
    answer = subprocess.run(
        [kata_ctl, "seccomp", "status", "--json"], capture_output=True, text=True, check=False
    )
    sandboxes = json.loads(answer.stdout) if answer.returncode == 0 else []
    processes = [
        process for sandbox in sandboxes if sandbox["id"] == CONTAINER for process in sandbox["processes"]
    ]
    shim = next((process for process in processes if process["name"] == "shim"), None)
    if shim is None:
        console.print(answer.stderr or "no unikernel is running", style="red", markup=False)
        return 1
    table = Table("thread", "tid", "seccomp mode", "filters")
    for thread in shim["threads"]:
        mode = f"[{'green' if thread['mode'] == 2 else 'red'}]{thread['mode']} ({thread['mode_name']})"
        table.add_row(thread["name"], str(thread["tid"]), mode, str(thread["filters"]))
    console.print(table)
    console.print("    the thread that runs the unikernel has a second filter, of its own")
    return 0
