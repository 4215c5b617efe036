"""Public findings in runtimes and VMMs of this kind, each tried here. The table is in docs/findings.md.

A test is named by its finding's number; tests/project/test_findings.py holds the two together.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.files import copy_file
from kata_agent.protos import agent_pb2
from kata_configuration import ConfigurationError, load
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.virtiofsd_arguments import find_faults
from kata_hypervisor.cloud_hypervisor import machine as clh
from kata_hypervisor.contract import Disk, SharedDirectory, UnikernelSpec, VmSpec
from kata_hypervisor.dragonball import cpuid
from kata_hypervisor.dragonball.virtio.block import Block, Medium
from kata_hypervisor.dragonball.virtio.device import VERSION_1, DeviceError
from kata_hypervisor.dragonball.virtio.queue import INDIRECT, NEXT, SplitQueue
from kata_hypervisor.errors import PolicyError
from kata_hypervisor.firecracker import machine as firecracker
from kata_hypervisor.kvm.abi import KvmCpuid2, KvmCpuidEntry2
from kata_hypervisor.qemu import command as qemu
from kata_hypervisor.qemu import unikernel_command
from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.solo5 import tender
from kata_hypervisor.virtiofsd import CAPABILITIES, Dialect, command_line
from kata_runtime.broker import sandbox_directory
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.images import open_in_image
from kata_runtime.resource.block_rootfs import _is_block_device
from kata_runtime.resource.shares import RootfsMount
from mmio_driver import STATUS, Driver
from tables import make_table
from virtqueue_driver import BUFFERS, MEMORY, VirtqueueDriver

KERNEL = "/k/vmlinuz"
IMAGE = Path(__file__)  # a file without partitions
SPEC = VmSpec(
    sandbox_id="pod",
    directory=Path("/run/pod"),
    vcpus=1,
    memory_mib=512,
    kernel=Path("/k/vmlinuz"),
    image=IMAGE,
    shared=SharedDirectory(Path("/run/pod/shared")),
)
SHIPPED = sorted((Path(__file__).parents[2] / "configuration").glob("configuration-*.toml"))
PREFIX = "io.katacontainers.config."


def qemu_table(**settings: Any) -> QemuHypervisor:
    return make_table(QemuHypervisor, **{"kernel": KERNEL, "accelerator": "kvm", **settings})


def qemu_command(**settings: Any) -> list[str]:
    return qemu.command_line(qemu_table(**settings), SPEC, qemu.Devices(vsock_cid=3))


def clh_machine() -> dict[str, Any]:
    sockets = clh.Sockets(Path("/run/vsock"), Path("/run/fs"))
    return clh.vm_config(make_table(CloudHypervisor, kernel=KERNEL), SPEC, sockets)


def firecracker_requests() -> dict[str, Any]:
    table = make_table(Firecracker, kernel=KERNEL)
    files = {path: path for path in (SPEC.kernel, SPEC.image) if path is not None}
    places = firecracker.Places(Path("/api"), Path("/vsock"), files)
    return {path: body for _, path, body in firecracker.requests(table, SPEC, places)}


def refuse_annotation(path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(path, check_host=False, annotations={PREFIX + name: value})
    assert any(PREFIX + name in str(found) for found in caught.value.diagnostics)


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def shipped(request: pytest.FixtureRequest) -> Path:
    """Each configuration as it is shipped."""
    path: Path = request.param
    return path


@pytest.fixture
def open_file(tmp_path: Path) -> Path:
    """A configuration whose annotations are as open as a pattern can make them."""
    path = tmp_path / "configuration.toml"
    path.write_text(
        '[hypervisor.qemu]\nkernel = "/boot/vmlinuz"\nimage = "/i.erofs"\nenable_annotations = [".*"]\n'
    )
    return path


# -- Kata ----------------------------------------------------------------------------------------------------


def test_cve_2026_24054_a_layerless_image_is_no_block_device(tmp_path: Path) -> None:
    """An image without layers is a bind of an empty directory; its file system's device was plugged in."""
    (tmp_path / "file").touch()
    for kind, source in (("bind", tmp_path), ("bind", "/dev/loop0"), ("ext4", tmp_path / "file")):
        assert not _is_block_device(RootfsMount(kind, str(source), ("rbind", "rw")))


def test_cve_2026_24834_no_guest_writes_the_shared_image() -> None:
    (image,) = clh_machine()["disks"]
    assert (image["path"], image["readonly"]) == (str(IMAGE), True)
    assert "pmem" not in clh_machine()
    assert firecracker_requests()["/drives/image"]["is_read_only"] is True
    arguments = " ".join(qemu_command())
    assert f"node-name=image,read-only=on,file.driver=file,file.filename={IMAGE}" in arguments
    assert "pmem" not in arguments
    assert "nvdimm" not in arguments


def test_cve_2026_41326_a_copied_file_follows_no_link_of_the_container(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    base.mkdir()
    outside.mkdir()
    (outside / "file").write_text("the guest's own")
    (base / "link").symlink_to(outside)
    (base / "file").symlink_to(outside / "file")

    def copy(path: Path) -> None:
        request = agent_pb2.CopyFileRequest(
            path=str(path), data=b"new", file_mode=0o644, file_size=3, uid=os.getuid(), gid=os.getgid()
        )
        copy_file(request, str(base))

    with pytest.raises(InvalidRequestError):
        copy(base / "link" / "file")
    copy(base / "file")
    assert (outside / "file").read_text() == "the guest's own"


@pytest.mark.parametrize("value", ["-o source=/", "--seccomp=none", "--sandbox=none", "--shared-dir=/"])
def test_cve_2026_44210_no_annotation_adds_an_argument_to_virtiofsd(
    shipped: Path, open_file: Path, value: str
) -> None:
    for path in (shipped, open_file):
        refuse_annotation(path, "hypervisor.virtio_fs_extra_args", value)
    assert list(find_faults(value.split()))


def test_cve_2026_47243_virtiofsd_keeps_its_sandbox_its_filter_and_makes_no_node() -> None:
    for dialect in Dialect:
        argv = command_line(Path("/v"), dialect, Path("/s"), "auto", ())
        loosened = [word for word in argv if "sandbox" in word or "seccomp" in word]
        assert [word.lstrip("-") for word in loosened] == ["sandbox=chroot"], "in namespaces of our making"
        assert any(CAPABILITIES in word for word in argv)
    assert "-mknod" in CAPABILITIES
    for word in ("--sandbox=none", "--seccomp=none", "--sandbox=chroot"):
        assert list(find_faults([word]))


def test_cve_2026_50540_no_annotation_names_the_configuration(shipped: Path, open_file: Path) -> None:
    for path in (shipped, open_file):
        refuse_annotation(path, "config_path", "/tmp/mine.toml")


def test_kata_pr_13415_no_annotation_shares_a_directory(shipped: Path, open_file: Path) -> None:
    for path in (shipped, open_file):
        refuse_annotation(path, "runtime.sandbox_bind_mounts", "/etc:rw")


def test_kata_pr_13331_a_block_request_stays_on_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"d" * 1024)
    disk = Block(Medium(os.open(path, os.O_RDWR | os.O_CLOEXEC), 1024, read_only=False, identity=b"x"))
    try:
        for kind, sector in ((1, 2), (1, 2**55), (1, 2**64 - 1), (0, 2), (0, 2**63)):
            driver = VirtqueueDriver()
            header = struct.pack("<IIQ", kind, 0, sector)
            driver.offer([header, b"x" * 512] if kind else [header], [1] if kind else [512, 1])
            chain = SplitQueue(driver.memory, driver.setup, False).pop()
            assert chain is not None
            disk.handle(0, chain)
        assert path.read_bytes() == b"d" * 1024
    finally:
        disk.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hypervisor.path", "/bin/sh"),
        ("hypervisor.kernel", "/etc/shadow"),
        ("hypervisor.virtio_fs_daemon", "/bin/sh"),
        ("hypervisor.seccomp_sandbox", "off"),
        ("hypervisor.disable_nested_virtualization", "false"),
        ("hypervisor.enable_annotations", ".*"),
        ("runtime.shim_seccomp", "off"),
    ],
)
def test_kata_4_3_0_a_pattern_of_annotations_opens_no_guarded_key(
    open_file: Path, name: str, value: str
) -> None:
    refuse_annotation(open_file, name, value)


def test_kata_4_3_0_a_chain_of_a_dragonball_guest_stays_in_its_memory() -> None:
    for descriptors in (
        [(MEMORY, 1, 0, 0)],
        [(MEMORY - 1, 2, 0, 0)],
        [(2**64 - 1, 2, 0, 0)],
        [(BUFFERS, 2**32 - 1, 0, 0)],
        [(BUFFERS, 1, NEXT, 0)],
        [(BUFFERS, 1, NEXT, 0xFFFF)],
        [(MEMORY, 16, INDIRECT, 0)],
        [(MEMORY - 8, 16, INDIRECT, 0)],
    ):
        driver = VirtqueueDriver()
        for number, descriptor in enumerate(descriptors):
            driver.describe(number, *descriptor)
        driver.offer_head(0)
        with pytest.raises(DeviceError):
            SplitQueue(driver.memory, driver.setup, False).pop()


# -- Firecracker ---------------------------------------------------------------------------------------------


def test_cve_2026_1386_a_jail_lies_where_only_root_writes(tmp_path: Path) -> None:
    """A local user made the jail's directory beforehand, with links in it."""
    (theirs := tmp_path / "sandbox").mkdir(mode=0o777)
    theirs.chmod(0o777)
    with pytest.raises(RequestFailedError, match="is not private"):
        sandbox_directory._take(str(theirs))
    theirs.rmdir()
    theirs.symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        sandbox_directory._take(str(theirs))


def test_cve_2026_5747_a_queue_that_is_in_use_is_not_changed() -> None:
    table = make_table(Firecracker, kernel=KERNEL)
    assert "--enable-pci" not in firecracker.own_arguments(table, Path("/api"))
    driver = Driver()  # of Dragonball: the same registers
    driver.negotiate(VERSION_1)
    driver.set_queue(0, 8, 0x1000)
    driver.write(STATUS, 0xF)
    driver.set_queue(0, 4, 0x9000)
    ((_, (setup,)),) = driver.device.calls
    assert (setup.index, setup.size, setup.descriptors) == (0, 8, 0x1000)


def test_cve_2026_122192_no_firecracker_gives_memory_back() -> None:
    """Discarded memory was another's afterwards; none of the devices that discard is asked for."""
    requests = firecracker_requests()
    asked = {path.split("/")[1] for path in requests}
    assert asked == {"boot-source", "machine-config", "cpu-config", "drives", "vsock", "entropy"}
    assert not any(
        "discard" in str(body) or "sparse" in str(body) for body in firecracker_requests().values()
    )


# -- Cloud Hypervisor ----------------------------------------------------------------------------------------


def test_cve_2026_27211_no_vmm_guesses_the_format_of_a_disk() -> None:
    """A guest wrote a QCOW2 header with a backing file into its raw disk."""
    assert [disk["image_type"] for disk in clh_machine()["disks"]] == ["Raw"]
    disk = clh.disk_config(make_table(CloudHypervisor, kernel=KERNEL), Disk("d", Path("/d"), read_only=False))
    assert (disk["image_type"], "backing_files" in disk) == ("Raw", False)
    blockdev = qemu_command()[qemu_command().index("-blockdev") + 1]
    assert blockdev.startswith("driver=raw,")


# -- QEMU ----------------------------------------------------------------------------------------------------

DEVICES = {
    *("virtio-blk-pci", "vhost-vsock-pci", "vhost-user-fs-pci", "virtio-rng-pci", "virtio-net-pci"),
    *("virtio-serial-pci", "virtserialport"),
}


def qemu_devices() -> set[str]:
    found: set[str] = set()
    for cid in (None, 3):
        argv = qemu.command_line(qemu_table(), SPEC, qemu.Devices(vsock_cid=cid))
        found |= {argv[at + 1].partition(",")[0] for at, word in enumerate(argv) if word == "-device"}
    return found


def test_cve_2026_48914_no_disk_passes_scsi_commands() -> None:
    argv = qemu_command()
    assert qemu_devices() <= DEVICES
    assert "-nodefaults" in argv
    assert not [word for word in argv if "scsi" in word]


def test_cve_2026_81627_who_owns_qemu_sees_the_guests_files_only() -> None:
    """A fault in code that every guest reaches: what is held is what it gains."""
    shown = qemu.shown(qemu_table(entropy_source="/dev/urandom"), SPEC, qemu.Devices(vsock_cid=3))
    assert {str(path) for path in shown.files} == {"/k/vmlinuz", str(IMAGE)}
    assert {str(path) for path in shown.devices} == {"/dev/null", "/dev/kvm", "/dev/urandom"}
    assert not shown.proc
    sandbox = qemu_command()[qemu_command().index("-sandbox") + 1].split(",")
    assert set(sandbox) >= {"on", "obsolete=deny", "spawn=deny", "resourcecontrol=deny"}


@pytest.mark.parametrize("device", ["u2f", "lsi53c895a", "e1000", "virtio-crypto", "vnc", "websocket", "xen"])
def test_no_device_that_a_finding_was_in_is_there(device: str) -> None:
    """Of the list of findings that cannot happen here."""
    argv = [word for word in qemu_command() if str(IMAGE) not in word]
    assert not [word for word in argv if device in word]


# -- KVM -----------------------------------------------------------------------------------------------------


def leaf(function: int) -> KvmCpuidEntry2:
    return KvmCpuidEntry2(function=function, ecx=0xFFFFFFFF, edx=0xFFFFFFFF)


def shown_virtualization(vendor: bytes) -> list[int]:
    """The bits for VMX and SVM that a Dragonball guest sees on a processor that has everything."""
    host = KvmCpuid2()
    words = struct.unpack("<III", vendor)
    host.entries[0] = KvmCpuidEntry2(function=0, ebx=words[0], edx=words[1], ecx=words[2])
    host.entries[1], host.entries[2] = leaf(1), leaf(0x80000001)
    host.nent = 3
    table = cpuid.normalize(host, 0, 1)
    found = {entry.function: entry.ecx for entry in table.entries[: table.nent]}
    return [found[1] >> 5 & 1, found[0x80000001] >> 2 & 1]


@pytest.mark.parametrize("number", ["CVE-2026-53359", "CVE-2026-64561"])
def test_cve_2026_53359_cve_2026_64561_no_guest_has_nested_virtualization(number: str) -> None:
    for accelerator, hidden in (("kvm", {"-vmx", "-svm"}), ("tcg", {"-svm"})):
        command = qemu_command(accelerator=accelerator)
        assert hidden <= set(command[command.index("-cpu") + 1].split(",")), number
    assert clh_machine()["cpus"]["nested"] is False
    assert [shown_virtualization(vendor) for vendor in (cpuid.INTEL, cpuid.AMD)] == [[0, 0], [0, 0]]


def test_cve_2026_53359_firecracker_hides_nested_virtualization_too() -> None:
    modifiers = firecracker_requests()["/cpu-config"]["cpuid_modifiers"]
    assert {entry["leaf"] for entry in modifiers} == {"0x1", "0x80000001"}


# -- urunc, libseccomp ---------------------------------------------------------------------------------------


HOSTILE_LINES = ["--block:x=/etc/shadow", "-device vfio", "a,path=/etc/shadow", "-- x", "'; reboot", "a\nb"]


@pytest.mark.parametrize("line", HOSTILE_LINES)
def test_ghsa_crxr_jm9v_349c_an_annotation_stays_one_argument(line: str) -> None:
    spec = UnikernelSpec("pod", Path("/run/pod"), 64, "app", 3, 4, command_line=line)
    argv = unikernel_command.command_line(qemu_table(), spec)
    assert argv[argv.index("-append") + 1] == line
    assert argv.count(line) == 1
    tendered = tender.command_line("/solo5-hvt", spec, {})
    assert tendered[tendered.index("--") + 2 :] == [line]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """A container's root file system, and a secret outside of it."""
    (tmp_path / "secret").write_text("the host's")
    (root := tmp_path / "image").mkdir()
    (root / "link").symlink_to("../secret")
    (root / "absolute").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "fifo")
    descriptor = os.open(root, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("name", ["../secret", "/../../secret", "link", "absolute", "x/../../secret", "fifo"])
def test_ghsa_3385_hmpj_4678_an_annotations_path_stays_in_the_image(image: int, name: str) -> None:
    with pytest.raises((RequestFailedError, RequestRefusedError)):
        open_in_image(image, name, write=False)


def test_ghsa_4q85_33p6_j5g6_no_rule_is_left_to_be_merged_wrongly() -> None:
    """libseccomp before 2.6.1 merges alternatives with comparisons other than equality into too much."""
    below = Rule(("ioctl",), (Condition(1, "lt", 5),))
    same = Rule(("ioctl",), (Condition(1, "eq", 9),))
    with pytest.raises(PolicyError, match="libseccomp cannot be trusted"):
        compile_rules((below, same), actions.ALLOW)
