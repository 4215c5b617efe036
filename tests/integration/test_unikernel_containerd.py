"""Unikernels as containers of the real containerd, in the sealed shim."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from confinement_reports import assert_on_page, report_of, roles_of
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl import confinement_page
from unikernel import HELLO, build_unikernel
from unikernel_description import described
from unikernel_node import RUNTIME, UnikernelNode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
]


@dataclass
class Images:
    """References of the images on the node."""

    hello: str
    commands: str
    block: str


@pytest.fixture(scope="module")
def node() -> Iterator[UnikernelNode]:
    one = UnikernelNode()
    yield one
    one.close()


@pytest.fixture(scope="module")
def images(node: UnikernelNode, tmp_path_factory: pytest.TempPathFactory) -> Images:
    directory = tmp_path_factory.mktemp("guests")
    disk = {"disk.img": b"first block\0".ljust(512, b".") + bytes(512)}
    return Images(
        node.add_image("hello", build_unikernel(directory, source=HELLO)),
        node.add_image("commands", build_unikernel(directory)),
        node.add_image("block", build_unikernel(directory, "BLOCK"), disk | {"directory/file": b"text"}),
    )


@pytest.fixture
def running(node: UnikernelNode, images: Images) -> Iterator[str]:
    """The id of a unikernel that runs for ever."""
    container = node.new_id()
    started = node.ctr("run", "-d", "--runtime", RUNTIME, images.commands, container, "spin")
    assert started.returncode == 0, started.stderr
    yield container
    node.ctr("task", "rm", "--force", container)
    node.ctr("container", "rm", container)
    assert node.nothing_left(container)


def test_it_prints_and_ends(node: UnikernelNode, images: Images) -> None:
    result = node.run(images.hello, "some", "words")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("bytes of code and data\nunikernel: some words\n")


@pytest.mark.parametrize("status", [0, 7, 255])
def test_its_status_is_the_containers(node: UnikernelNode, images: Images, status: int) -> None:
    assert node.run(images.commands, "exit", str(status)).returncode == status


def test_a_memory_limit_is_its_memory(node: UnikernelNode, images: Images) -> None:
    assert " 64 MiB of memory" in node.run(images.hello, options=("--memory-limit", str(64 << 20))).stdout


def test_all_that_it_prints_arrives(node: UnikernelNode, images: Images) -> None:
    assert node.run(images.commands, "flood", "3000").stdout == "0123456789abcde\n" * 3000


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("trap",), "crashed with a triple fault"),
        (("call", "77"), "wrote 0x"),
        (("string", "1048576"), "named 18446744073709551615 bytes at 0x100000"),
        (("halt",), "halted its processor for good"),
    ],
)
def test_a_crash_is_told_to_its_user(
    node: UnikernelNode, images: Images, command: tuple[str, ...], reason: str
) -> None:
    result = node.run(images.commands, *command)
    assert result.returncode == 128 + 6
    assert result.stderr.startswith(f"kata: the unikernel {reason}")


def test_every_thread_is_sealed_and_the_processors_twice(node: UnikernelNode, running: str) -> None:
    pid = node.vmm(running)
    threads = read_threads(pid)
    assert all(thread.confined for thread in threads)
    assert max(thread.filters for thread in threads) == min(thread.filters for thread in threads) + 1


def test_each_process_is_what_its_row_says(running: str) -> None:
    report = report_of(running)
    assert roles_of(report) == {"shim", "broker", "init"}
    assert confinement_page.differences(report) == []
    shim = report["processes"][0]
    assert shim["descriptors"]["kvm-vm"] == 1
    assert set(shim["reach"].values()) == {"nothing"}
    assert [owned["role"] for owned in report["owned"]] == ["shim"]
    assert_on_page(report)


def test_what_needs_an_agent_is_not_implemented(node: UnikernelNode, running: str) -> None:
    result = node.ctr("task", "exec", "--exec-id", "e1", running, "ls")
    sentence = (
        "cannot run another process in it: the container is a unikernel, which has no agent: not implemented"
    )
    assert (result.returncode, sentence in result.stderr) == (1, True)


def test_it_is_paused_and_goes_on(node: UnikernelNode, running: str) -> None:
    for command, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        assert node.ctr("task", command, running).returncode == 0
        assert state in node.ctr("task", "ls").stdout


@pytest.mark.parametrize(("signal", "status"), [("TERM", 143), ("KILL", 137)])
def test_a_signal_ends_it(node: UnikernelNode, running: str, signal: str, status: int) -> None:
    assert node.ctr("task", "kill", "-s", "WINCH", running).returncode == 0
    assert "RUNNING" in node.ctr("task", "ls").stdout
    assert node.ctr("task", "kill", "-s", signal, running).returncode == 0
    deadline = time.monotonic() + 20
    while "STOPPED" not in node.ctr("task", "ls").stdout:
        assert time.monotonic() < deadline
    assert f"code {status}" in node.ctr("task", "rm", running).stderr


def test_a_container_that_never_started_is_deleted(node: UnikernelNode, images: Images) -> None:
    container = node.new_id()
    node.ctr("container", "create", "--runtime", RUNTIME, images.commands, container, "exit", "0")
    started = node.ctr("task", "start", "-d", container)
    assert started.returncode == 0, started.stderr
    node.ctr("task", "rm", "--force", container)
    assert node.ctr("container", "rm", container).returncode == 0
    assert node.nothing_left(container)


BINARY = described(binary="/unikernel.hvt", hypervisor="hvt")


def test_a_block_device_of_the_image(node: UnikernelNode, images: Images) -> None:
    result = node.run(images.block, "copy", annotations=BINARY | described(block="/disk.img"))
    assert (result.returncode, result.stdout) == (0, "first block")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (BINARY, "note MFT1 declares the block device 'storage', which is not supplied; supplied: none"),
        (
            BINARY | described(block="/none"),
            "names '/none' as the unikernel's block: cannot open /none in the image: No such",
        ),
        (
            BINARY | described(binary="/directory"),
            "/directory in the image is neither a regular file nor a block device",
        ),
        (BINARY | described(binary="/directory/file"), "it is not an ELF file: it begins with b'text'"),
        (
            BINARY | described(binary="../../../../etc/passwd"),
            "cannot open ../../../../etc/passwd in the image: No such",
        ),
        (
            BINARY | described(hypervisor="spt"),
            'asks for "spt", which [hypervisor.solo5-spt] runs',
        ),
        (
            BINARY | described(hypervisor="xen"),
            "com.urunc.unikernel.hypervisor is 'xen': it must be one of qemu, firecracker, hvt, spt",
        ),
        (BINARY | {"com.urunc.unikernel.binary": "/plain"}, "is '/plain': it must be the base64 of text"),
    ],
)
def test_what_cannot_run_is_explained_and_leaves_nothing(
    node: UnikernelNode, images: Images, annotations: dict[str, str], message: str
) -> None:
    result = node.run(images.block, "copy", annotations=annotations)
    assert (result.returncode, message in result.stderr) == (1, True), result.stderr


def test_a_shim_that_is_killed_takes_it_along(node: UnikernelNode, running: str) -> None:
    pid = node.vmm(running)
    os.kill(pid, 9)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
