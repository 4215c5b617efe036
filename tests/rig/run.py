"""Run a command where a KVM runs unmodified guests: in the rig, or here if this host has such a KVM."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import machine

from kata_hypervisor.kvm.probe import probe_kvm
from kata_runtime.image import builder

PASSED_ON = (
    "KATA_TEST_CLOUD_HYPERVISOR",
    "KATA_TEST_CONTAINERD2",
    "KATA_TEST_FIRECRACKER",
    "KATA_TEST_JAILER",
    "HYPOTHESIS_PROFILE",
    "PYTEST_ADDOPTS",
    "PYTHONPATH",
)
FAILED = 1
PATIENCE = "300"


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
        "command", nargs="+", help="a program of this checkout's environment, and its arguments"
    )
    arguments = parser.parse_args()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["KATA_TEST_IMAGE"] = str(arguments.image.absolute())
    if arguments.prefer_host:
        verdict = probe_kvm()
        print(f"==> {verdict.reason}", flush=True)
        if verdict.runs_unmodified_guests:
            script = machine.in_checkout(arguments.command, environment)
            return subprocess.run(["/bin/sh", "-c", script], check=False).returncode
    print("==> the rig: an emulated host with KVM, vhost-vsock and cgroups version 2", flush=True)
    script = machine.in_checkout(arguments.command, environment | {"KATA_TEST_PATIENCE": PATIENCE})
    try:
        return machine.run(script, arguments.image, arguments.deadline, tell)
    except machine.RigError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return FAILED


def tell(output: bytes) -> None:
    """Pass output on as it comes."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
