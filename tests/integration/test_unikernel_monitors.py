"""Unikernels in QEMU and Firecracker, as containers of the real containerd, with the sealed shim beside them.

QEMU emulates here. Firecracker is named by KATA_TEST_FIRECRACKER; the guest is small enough for any KVM.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import busybox_image
from kata_hypervisor.seccomp.confinement import read_threads
from unikernel import build_bare, build_unikernel
from unikernel_description import described
from unikernel_node import RUNTIME, TABLE, UnikernelNode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
]

BINARY = "/unikernel.hvt"  # where the image has it, whatever it is for
FILES = {
    "disk.img": b"first block\0".ljust(512, b".") + bytes(512),
    "initrd": b"an initrd's content\n",
    "text": b"text",
}
QEMU = shutil.which("qemu-system-x86_64")


@dataclass
class Subject:
    """A hypervisor with a node and an image for it."""

    name: str
    node: UnikernelNode
    image: str

    def described(self, **more: str) -> dict[str, str]:
        """Annotations of the image's unikernel."""
        return described(**{"binary": BINARY, "hypervisor": self.name, **more})

    def pid(self, container: str) -> int:
        """The process id that containerd shows: that of the init of the VMM's namespace."""
        return int(self.node.ctr("task", "ls").stdout.split(container)[1].split()[0])

    def vmm(self, container: str) -> int:
        """The process id of the VMM, which has the same parent."""
        broker = parent_of(self.pid(container))
        children = Path(f"/proc/{broker}/task/{broker}/children").read_text().split()
        (vmm,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith(self.name)]
        return int(vmm)


def table_of(name: str) -> str:
    """The configuration's table; skips where the program is missing."""
    if name == "qemu":
        if QEMU is None:
            pytest.skip("qemu-system-x86_64 is missing: run make packages")
        return f'{TABLE}path = "{QEMU}"\naccelerator = "tcg"\nshared_fs = "none"\n'
    program = os.environ.get("KATA_TEST_FIRECRACKER", "")
    if not Path(program).is_file():
        pytest.skip("KATA_TEST_FIRECRACKER names no program")
    if not os.path.exists("/dev/kvm"):
        pytest.skip("needs /dev/kvm")
    return f'{TABLE}path = "{program}"\n'


@pytest.fixture(
    scope="module",
    params=["qemu", "firecracker"],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    name = request.param
    table = table_of(name)
    directory = tmp_path_factory.mktemp("guests")
    bare = build_bare(directory)
    solo5 = build_unikernel(directory).read_bytes()
    node = UnikernelNode(name, table)
    try:
        urunc = json.dumps(described(binary=BINARY, hypervisor=name)).encode()
        files = FILES | {"urunc.json": urunc, "solo5": solo5}
        yield Subject(name, node, node.add_image("bare", bare, files))
    finally:
        node.close()


def shim_of(vmm: int) -> int:
    """The process that runs the VMM's parent, the broker."""
    return parent_of(parent_of(vmm))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


@pytest.fixture
def running(subject: Subject) -> Iterator[str]:
    """The id of a unikernel that runs for ever."""
    node, container = subject.node, subject.node.new_id()
    started = node.ctr(
        "run", "-d", "--memory-limit", "67108864", "--runtime", RUNTIME, subject.image, container, "spin"
    )
    assert started.returncode == 0, started.stderr
    yield container
    node.ctr("task", "rm", "--force", container)
    node.ctr("container", "rm", container)
    assert node.nothing_left(container)


def test_it_prints_and_ends(subject: Subject) -> None:
    result = subject.node.run(subject.image, "echo", "some", "words")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("echo some words")


def test_its_status_is_the_containers(subject: Subject) -> None:
    expected = 7 if subject.name == "qemu" else 0  # Firecracker knows none
    assert subject.node.run(subject.image, "exit", "7").returncode == expected


def test_a_crash_is_its_end(subject: Subject) -> None:
    result = subject.node.run(subject.image, "crash")
    if subject.name == "qemu":  # which cannot be distinguished from a reset
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert result.returncode == 128 + 6
        assert result.stderr == "kata: the unikernel crashed: Unexpected exit reason on vcpu run: Shutdown\n"


def test_much_that_it_prints_arrives(subject: Subject) -> None:
    assert subject.node.run(subject.image, "flood", "3000").stdout == "0123456789abcde\n" * 3000


def test_a_block_device_of_the_image(subject: Subject) -> None:
    annotations = subject.described(block="/disk.img")
    result = subject.node.run(subject.image, "copy", annotations=annotations)
    assert (result.returncode, result.stdout) == (0, "first block")


def test_an_initrd_of_the_image(subject: Subject) -> None:
    annotations = subject.described(initrd="/initrd")
    assert (
        subject.node.run(subject.image, "initrd", annotations=annotations).stdout == "an initrd's content\n"
    )


def test_the_form_of_a_kind(subject: Subject) -> None:
    annotations = subject.described(unikernelType="unikraft")
    result = subject.node.run(
        subject.image, "echo", "words", annotations=annotations, options=("--env", "A=b")
    )
    assert result.stdout.startswith("echo env.vars=[ ")
    assert " A=b ] " in result.stdout
    assert result.stdout.endswith(" -- words")


def test_vmm_and_runtime_are_confined_and_the_memory_is_the_containers(
    subject: Subject, running: str
) -> None:
    pid = subject.vmm(running)
    threads = read_threads(pid)
    assert len(threads) >= 3
    assert all(thread.confined for thread in threads)
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if subject.name == "qemu":
        sandbox = argv[argv.index(b"-sandbox") + 1]
        assert sandbox == b"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        assert argv[argv.index(b"-m") + 1] == b"64M"
    else:
        assert b"--no-seccomp" not in argv
    assert all(thread.confined for thread in read_threads(shim_of(pid)))


def test_what_needs_an_agent_is_not_implemented(subject: Subject, running: str) -> None:
    result = subject.node.ctr("task", "exec", "--exec-id", "e1", running, "ls")
    sentence = (
        "cannot run another process in it: the container is a unikernel, which has no agent: not implemented"
    )
    assert (result.returncode, sentence in result.stderr) == (1, True)


def test_it_is_paused_and_goes_on(subject: Subject, running: str) -> None:
    for command, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        assert subject.node.ctr("task", command, running).returncode == 0
        assert state in subject.node.ctr("task", "ls").stdout


def test_a_signal_ends_it(subject: Subject, running: str) -> None:
    node = subject.node
    assert node.ctr("task", "kill", "-s", "TERM", running).returncode == 0
    deadline = time.monotonic() + 20
    while "STOPPED" not in node.ctr("task", "ls").stdout:
        assert time.monotonic() < deadline
    assert "code 143" in node.ctr("task", "rm", running).stderr


def test_a_container_that_never_started_is_deleted(subject: Subject) -> None:
    node, container = subject.node, subject.node.new_id()
    node.ctr("container", "create", "--runtime", RUNTIME, subject.image, container, "spin")
    started = node.ctr("task", "start", "-d", container)
    assert started.returncode == 0, started.stderr
    node.ctr("task", "rm", "--force", container)
    assert node.ctr("container", "rm", container).returncode == 0
    assert node.nothing_left(container)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"binary": "/text"}, "cannot run the unikernel /text: it is no kernel: it begins with b'text'"),
        ({"binary": "/solo5"}, "cannot run the unikernel /solo5: its note ABI1 says target hvt, version 2"),
        (
            {"initrd": "/none"},
            "names '/none' as the unikernel's initrd: cannot open /none in the image: No such",
        ),
        ({"hypervisor": "hvt"}, 'hypervisor asks for "hvt", which [hypervisor.dragonball] or'),
        ({"hypervisor": "xen"}, "hypervisor is 'xen': it must be one of qemu, firecracker, hvt, spt"),
        (
            {"unikernelType": "osv"},
            "unikernelType is 'osv': it must be one of mirage, rumprun, unikraft",
        ),
    ],
)
def test_what_cannot_run_is_explained_and_leaves_nothing(
    subject: Subject, changes: dict[str, str], message: str
) -> None:
    result = subject.node.run(subject.image, "spin", annotations=subject.described(**changes))
    assert (result.returncode, message in result.stderr) == (1, True), result.stderr


def test_a_linux_container_is_refused(subject: Subject, tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    busybox_image.write_image(archive)
    assert subject.node.ctr("image", "import", str(archive)).returncode == 0
    result = subject.node.run(busybox_image.NAME, "true")
    sentence = f'[hypervisor.{subject.name}] runs unikernels only, because its kernel is ""'
    assert (result.returncode, sentence in result.stderr) == (1, True), result.stderr


def test_a_shim_that_is_killed_takes_it_along(subject: Subject, running: str) -> None:
    vmm = subject.vmm(running)
    os.kill(shim_of(vmm), 9)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{vmm}").exists():
        assert time.monotonic() < deadline
