"""What is wrong is reported through ctr in one clear error, at once, and nothing is left of the attempt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import shipped_configuration
from fake_qemu import GREETING
from kata_hypervisor.host_checks import way_without_kvm
from kata_hypervisor.kvm.probe import probe_kvm
from node import Node, Result
from shipped_configuration import Value

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

CREATE, START, UNKNOWN = "ctr: failed to create shim task: ", "ctr: ", ": unknown"
"""What containerd puts before the error of a Create, and around that of a Start, which boots the machine."""


def refused(result: Result) -> str:
    """What ctr says of a container that it could not create or start: the error's message, all lines."""
    assert result.returncode == 1
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("time=")]
    text = "\n".join(lines)
    assert text.startswith(START), result.stderr
    if text.startswith(CREATE):
        return text.removeprefix(CREATE)
    return text.removeprefix(START).removesuffix(UNKNOWN)


def run_with(node: Node, configuration: Path) -> str:
    """The error of a container with this configuration file."""
    return refused(node.run("true", options=("--runtime-config-path", configuration)))


# -- the configuration file ----------------------------------------------------------------------------------


def test_a_misspelled_key_is_named_with_its_place_and_the_right_one(each_node: Node) -> None:
    text = each_node.configuration("typo").read_text()
    assert text.count("\nseccompsandbox =") == 1
    line = text[: text.index("\nseccompsandbox =")].count("\n") + 2
    path = each_node.root / "typo.toml"
    path.write_text(text.replace("\nseccompsandbox =", "\nsecompsandbox ="))
    error = run_with(each_node, path)
    what = 'unknown key (did you mean "seccompsandbox"?)'
    assert error.startswith(f"{path}:{line}:1: error[KATA201] hypervisor.qemu.secompsandbox: {what}")
    assert "\n" not in error


def test_a_missing_configuration_is_named(node: Node) -> None:
    assert run_with(node, Path("/nowhere.toml")).startswith("/nowhere.toml: error[KATA002] does not exist")


def test_an_unreadable_configuration_is_named(node: Node) -> None:
    assert run_with(node, node.root).startswith(f"{node.root}: error[KATA001] is a directory")


@pytest.mark.parametrize("key", ["kernel", "path", "virtio_fs_daemon"])
def test_a_missing_file_is_named_with_its_key(node: Node, key: str) -> None:
    path = node.configuration("missing", **{key: "/nowhere"})
    error = run_with(node, path)
    assert error.startswith(f"{path}:")
    assert f": error[KATA601] hypervisor.qemu.{key}: /nowhere does not exist (" in error


# -- what the configuration names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"path": "/bin/false"},
            "qemu exited with status 1 before the guest was ready, and wrote nothing to stderr",
        ),
        (
            {"virtio_fs_daemon": "/bin/false"},
            "virtiofsd exited with status 1 before the guest was ready, and wrote nothing to stderr",
        ),
        ({"default_memory": 16777216}, "cannot give the guest 16777216 MiB of memory: this host has "),
        ({"cpu_features": "frobnicate=on"}, "frobnicate' not found"),
    ],
    ids=["qemu", "virtiofsd", "memory", "property"],
)
def test_a_machine_that_cannot_start_is_explained(node: Node, values: dict[str, Value], message: str) -> None:
    assert message in run_with(node, node.configuration("unfit", **values)).partition("\n")[0]


def test_a_kernel_that_is_none_is_explained(node: Node) -> None:
    (node.root / "noise").write_bytes(os.urandom(1 << 20))
    error = run_with(node, node.configuration("noise", kernel=node.root / "noise"))
    assert "kernel in [hypervisor.qemu] is not a Linux kernel that qemu can start" in error.partition("\n")[0]


def test_a_guest_that_panics_is_quoted(node: Node) -> None:
    (node.root / "noise").write_bytes(os.urandom(1 << 20))
    error = run_with(
        node, node.configuration("panic", initrd=node.root / "noise", kernel_params="root=/dev/none")
    )
    assert error.startswith("the guest's kernel panicked: not syncing: VFS: Unable to mount root fs")
    assert "\nconsole:\n" in error


def test_a_guest_that_never_answers_is_given_up(node: Node) -> None:
    error = run_with(
        node, node.configuration("silent", kernel_params="rdinit=/bin/false", reconnect_timeout_ms=1500)
    )
    first = error.partition("\n")[0]
    assert "the guest's agent did not answer within 1.5 s" in first
    assert "reconnect_timeout_ms" in first
    assert "\nguest console:\n" in error


# What a VMM may do on a KVM that runs no unmodified guests, by stand-ins; and what the error quotes of it.
ASSERTION = "kvm.c: kvm_buf_set_msrs: Assertion 'ret == cpu->kvm_msr_buf->nmsrs' failed."
QMP = f"""\
import json, socket
monitor = socket.socket(fileno=3)
monitor.send({GREETING!r})
while command := monitor.recv(65536):  # the client waits for each answer
    answer = {{"return": {{}}, "id": json.loads(command).get("id")}}
    monitor.send(json.dumps(answer).encode() + b"\\n")
"""
STAND_INS = {
    "aborts": (f'#!/bin/sh\necho "{ASSERTION}" >&2\nkill -ABRT $$\n', "killed by SIGABRT"),
    "is killed": ("#!/bin/sh\nkill -KILL $$\n", "killed by SIGKILL"),
    "exits": ("#!/bin/sh\necho 'error: failed to set MSR 0x1d9' >&2\nexit 1\n", "failed to set MSR 0x1d9"),
    "hangs": (f"#!{sys.executable} -IS\n{QMP}", "the guest's agent did not answer within 3 s"),
}


def check_kvm_error(error: str, hypervisor: str, own: str) -> None:
    """The error of a VMM that failed with KVM, on this host. own: what it says of the VMM itself."""
    found = probe_kvm()
    first, _, rest = error.partition("\n")
    if found.runs_unmodified_guests:
        assert own in first
    elif found.usable:
        assert first == (
            f"cannot run a guest with KVM: {found.reason}; {way_without_kvm(hypervisor)}, "
            "and see kata-ctl check for this host"
        )
        assert own in rest.partition("\n")[0]
    else:
        assert " error[KATA603] " in first or "cannot use KVM: /dev/kvm: " in first
        assert 'accelerator = "tcg"' in first


@pytest.mark.parametrize("behaviour", STAND_INS)
def test_a_qemu_that_fails_on_kvm_is_explained(node: Node, behaviour: str) -> None:
    script, own = STAND_INS[behaviour]
    program = node.root / "qemu"
    program.write_text(script)
    program.chmod(0o755)
    values: dict[str, Value] = {"accelerator": "kvm", "path": program, "seccompsandbox": "off"}
    error = run_with(node, node.configuration("standin", **values, reconnect_timeout_ms=3000))
    check_kvm_error(error, "qemu", own)


def test_the_real_qemu_on_a_kvm_that_runs_no_guest_is_explained(node: Node) -> None:
    if probe_kvm().runs_unmodified_guests:
        pytest.skip("this host's KVM runs guests")
    error = run_with(node, node.configuration("kvm", accelerator="kvm", reconnect_timeout_ms=3000))
    check_kvm_error(error, "qemu", "")


@pytest.mark.parametrize("hypervisor", ["clh", "firecracker"])
def test_another_vmm_that_fails_on_kvm_is_explained(node: Node, guest_image: Path, hypervisor: str) -> None:
    program = node.root / hypervisor
    program.write_text("#!/bin/sh\nkill -ABRT $$\n")
    program.chmod(0o755)
    # A script has no C library, for which Cloud Hypervisor's filter would be.
    values = shipped_configuration.for_image(guest_image) | {"path": program, "disable_seccomp": True}
    unknown = {"accelerator"} if hypervisor == "clh" else {"accelerator", "virtio_fs_daemon"}
    path = node.root / f"{hypervisor}.toml"
    fit = {key: value for key, value in values.items() if key not in unknown}
    path.write_text(shipped_configuration.render(fit, hypervisor))
    check_kvm_error(run_with(node, path), hypervisor, "killed by SIGABRT")


# -- the container -------------------------------------------------------------------------------------------


def test_a_missing_root_file_system_is_named(node: Node) -> None:
    container = node.new_id()
    error = refused(node.run("true", options=("--rootfs",), image="/nowhere", container=container))
    assert error.startswith(
        f"cannot create container {container}: its root file system /nowhere is not a directory"
    )
    assert f"sandbox {container} is running" not in node.log()


def test_a_missing_mount_source_is_named(node: Node) -> None:
    container = node.new_id()
    mount = ("--mount", "type=bind,src=/nowhere,dst=/data,options=rbind:ro")
    error = refused(node.run("true", options=mount, container=container))
    assert error.startswith(
        f"cannot create container {container}: the source '/nowhere' of the mount on /data does not exist"
    )
    assert f"sandbox {container} is running" not in node.log()


def test_an_executable_that_does_not_exist_is_named(node: Node) -> None:
    container = node.new_id()
    error = refused(node.run("/nowhere", container=container))
    assert error.startswith(
        f'cannot create container {container}: exec "/nowhere": executable file not found in $PATH'
    )
