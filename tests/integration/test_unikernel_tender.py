"""Unikernels in Solo5's own tender, through the real containerd."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from confinement_reports import assert_on_page, process_of, report_of, roles_of
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl import confinement_page
from process_facts import CAPABILITIES, limit_of, shared_namespaces, status_of
from solo5_file import abi_note, entry, manifest_note, unikernel_file
from unikernel import HELLO, build_unikernel
from unikernel_description import described
from unikernel_node import RUNTIME, UnikernelNode
from unikernel_subjects import spt_code

SOLO5_SPT = os.environ.get("KATA_TEST_SOLO5_SPT") or shutil.which("solo5-spt")
SOLO5_HVT = os.environ.get("KATA_TEST_SOLO5_HVT") or shutil.which("solo5-hvt")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm"),
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd"),
    pytest.mark.skipif(
        SOLO5_HVT is None, reason="needs solo5-hvt 0.11 or newer, on PATH or named by KATA_TEST_SOLO5_HVT"
    ),
]


@pytest.fixture(scope="module")
def node() -> Iterator[UnikernelNode]:
    one = UnikernelNode("solo5-hvt", f'path = "{SOLO5_HVT}"\n')
    yield one
    one.close()


@pytest.fixture(scope="module")
def commands(node: UnikernelNode, tmp_path_factory: pytest.TempPathFactory) -> str:
    return node.add_image("commands", build_unikernel(tmp_path_factory.mktemp("guests")))


def test_it_prints_and_ends(node: UnikernelNode, tmp_path: Path) -> None:
    image = node.add_image("hello", build_unikernel(tmp_path, source=HELLO))
    result = node.run(image, "some", "words")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("unikernel: some words\n")


@pytest.mark.parametrize("status", [0, 7])
def test_its_status_is_the_containers(node: UnikernelNode, commands: str, status: int) -> None:
    assert node.run(commands, "exit", str(status)).returncode == status


def test_the_tenders_complaint_is_told(node: UnikernelNode, commands: str) -> None:
    result = node.run(commands, "call", "77")
    assert result.returncode == 1
    assert "kata: solo5-hvt exited: exit status 1: solo5-hvt: Invalid guest port access" in result.stderr


def test_every_thread_of_the_tender_is_confined(node: UnikernelNode, commands: str) -> None:
    container = node.new_id()
    assert node.ctr("run", "-d", "--runtime", RUNTIME, commands, container, "spin").returncode == 0
    pid = node.vmm(container)
    threads = read_threads(pid)
    assert threads[0].name == "solo5-hvt"
    assert all(thread.confined for thread in threads)
    for command, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        assert node.ctr("task", command, container).returncode == 0
        assert state in node.ctr("task", "ls").stdout
    node.ctr("task", "rm", "--force", container)
    node.ctr("container", "rm", container)
    assert node.nothing_left(container)
    assert not Path(f"/proc/{pid}").exists()


@dataclass
class Tender:
    """A unikernel with a block device that runs for ever. pid: of its tender."""

    name: str
    container: str
    pid: int


@pytest.fixture(params=["solo5-hvt", "solo5-spt"])
def tender(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tender]:
    name = request.param
    program = {"solo5-hvt": SOLO5_HVT, "solo5-spt": SOLO5_SPT}[name]
    if program is None:
        pytest.skip(f"needs {name}, on PATH or named by a variable")
    file = tmp_path / "unikernel"
    manifest = manifest_note(entry("storage", 1))
    file.write_bytes(unikernel_file(abi=abi_note(2), manifest=manifest, code=spt_code("spin")))
    if name == "solo5-hvt":
        file = build_unikernel(tmp_path, "BLOCK")
    with closing(UnikernelNode(name, f'path = "{program}"\n')) as node:
        image = node.add_image("block", file, {"disk.img": bytes(1024)})
        container = node.new_id()
        annotations = described(binary="/unikernel.hvt", hypervisor=name[-3:], block="/disk.img")
        pairs = [f"{key}={value}" for key, value in annotations.items()]
        given = [word for pair in pairs for word in ("--annotation", pair)]
        started = node.ctr("run", "-d", "--runtime", RUNTIME, *given, image, container, "spin")
        assert (started.returncode, started.stderr) == (0, "")
        yield Tender(name, container, node.vmm(container))
        node.ctr("task", "rm", "--force", container)
        assert node.nothing_left(container)


def test_it_has_nothing_of_the_host_but_its_block_device(tender: Tender) -> None:
    status, root = status_of(tender.pid), Path(f"/proc/{tender.pid}/root")
    (user,) = set(status["Uid"].split()) | set(status["Gid"].split())
    assert int(user) >= 1_900_000_000
    assert {status[key] for key in CAPABILITIES} == {"0" * 16}
    assert (status["Groups"], status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    assert shared_namespaces(tender.pid) == set()
    assert limit_of(tender.pid, "core file size") == ("0", "0")
    devices = {path.name for path in (root / "dev").iterdir()} if (root / "dev").exists() else set()
    assert devices == ({"kvm"} if tender.name == "solo5-hvt" else set())
    assert not (root / "etc" / "passwd").exists()
    opened = [path.stat() for path in Path(f"/proc/{tender.pid}/fd").iterdir()]
    disks = [found for found in opened if stat.S_ISREG(found.st_mode) and found.st_size == 1024]
    assert {str(found.st_uid) for found in disks} == {user}
    assert len(disks) == 2  # it opened it again


def test_each_process_is_what_its_row_says(tender: Tender) -> None:
    report = report_of(tender.container)
    assert roles_of(report) == {"shim", "broker", "init", tender.name}
    assert confinement_page.differences(report) == []
    assert set(process_of(report, "shim")["reach"].values()) == {"nothing"}
    assert [owned["role"] for owned in report["owned"]] == ["shim", tender.name]
    assert_on_page(report)


def test_a_linux_container_is_refused(node: UnikernelNode, tmp_path: Path) -> None:
    import busybox_image

    archive = tmp_path / "busybox.tar"
    busybox_image.write_image(archive)
    assert node.ctr("image", "import", str(archive)).returncode == 0
    result = node.run(busybox_image.NAME, "true")
    assert (result.returncode, "[hypervisor.solo5-hvt] runs unikernels only" in result.stderr) == (1, True)
