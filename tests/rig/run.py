"""Run a command, or a shell, where a KVM runs unmodified guests: in the rig, or here if KVM can."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine

from kata_hypervisor.kvm.probe import probe_kvm
from kata_runtime.image import builder

PASSED_ON = (
    "KATA_TEST_CLOUD_HYPERVISOR",
    "KATA_TEST_CONTAINERD2",
    "KATA_TEST_FIRECRACKER",
    "KATA_TEST_JAILER",
    "KATA_TEST_REPORT",
    "KATA_TEST_SOLO5_HVT",
    "KATA_TEST_SOLO5_HVT_OLD",
    "KATA_TEST_SOLO5_SPT",
    "PYTEST_ADDOPTS",
    "PYTHONPATH",
)
FAILED = 1
PATIENCE = "300"
LONGEST_SHELL = 12 * 3600.0


def main() -> int:
    """Parse the command line, run the command, and return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--image", type=Path, default=builder.DEFAULT_OUTPUT, help="directory of the guest image"
    )
    parser.add_argument("--deadline", type=float, default=900, help="seconds that the rig gets (%(default)g)")
    parser.add_argument("--prefer-host", action="store_true", help="run it here if KVM is good enough here")
    parser.add_argument(
        "command",
        nargs="*",
        help="a program of this checkout's environment, with arguments; none: a shell",
    )
    arguments = parser.parse_args()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["KATA_TEST_IMAGE"] = str(arguments.image.absolute())
    if not arguments.command:
        return shell(arguments.image, environment)
    if arguments.prefer_host:
        result = probe_kvm()
        print(f"==> {result.reason}", flush=True)
        if result.runs_unmodified_guests:
            script = machine.in_checkout(arguments.command, environment)
            return subprocess.run(["/bin/sh", "-c", script], check=False).returncode
    print("==> the rig: an emulated host with KVM, vhost-vsock and cgroups version 2", flush=True)
    script = machine.in_checkout(arguments.command, environment | {"KATA_TEST_PATIENCE": PATIENCE})
    try:
        return machine.run(script, arguments.image, arguments.deadline, tell)
    except machine.RigError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return FAILED


def shell(image: Path, environment: dict[str, str]) -> int:
    """Give this terminal a shell in the rig, until it ends."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("run.py: a shell needs a terminal; else name a command", file=sys.stderr)
        return FAILED
    print("==> the rig: a shell as root; exit ends it, and what it wrote is forgotten", flush=True)
    size = os.get_terminal_size()
    prompt = {"TERM": os.environ.get("TERM", "vt100"), "PS1": "rig:\\w# "}
    setting = f"stty rows {size.lines} columns {size.columns}; exec bash --norc"
    # Of the one port that there is, output is the descriptor; a second opening would be refused.
    script = f"exec script --quiet --flush --return --command {shlex.quote(setting)} /dev/null <&1"
    command = ["sh", "-c", script]
    try:
        with raw_terminal():
            script = machine.in_checkout(command, environment | prompt)
            return machine.run(script, image, LONGEST_SHELL, tell, stdin=sys.stdin.fileno())
    except machine.RigError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return FAILED


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Leave every key to the shell in the rig."""
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def tell(output: bytes) -> None:
    """Pass output on as it comes."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
