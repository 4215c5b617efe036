"""QEMU's command line: what it must contain, and what no value can make it contain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_configuration.models.qemu import QemuHypervisor
from kata_configuration.sandbox_option import DENY_ALL
from kata_hypervisor.contract import SharedDirectory, Tap, VmSpec
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.kernel_line import LIMIT, is_partitioned
from kata_hypervisor.privileges import VHOST_NET
from kata_hypervisor.qemu.command import Devices, command_line, shown

SPEC = VmSpec(
    sandbox_id="pod",
    directory=Path("/run/pod"),
    vcpus=2,
    memory_mib=512,
    kernel=Path("/k/vmlinuz"),
    initrd=Path("/k/initrd"),
    image=Path("/k/image"),
    kernel_parameters=("agent.log=debug", "quiet"),
    shared=SharedDirectory(Path("/run/pod/shared")),
)
SERIAL = Devices(vsock_cid=None)


def table(**settings: Any) -> QemuHypervisor:
    return QemuHypervisor(**{"kernel": "/k/vmlinuz", "accelerator": "tcg", **settings})


def value(argv: list[str], option: str) -> str:
    """The argument after an option that occurs once."""
    assert argv.count(option) == 1
    return argv[argv.index(option) + 1]


def kernel_command_line(table: QemuHypervisor, spec: VmSpec, devices: Devices) -> str:
    return value(command_line(table, spec, devices), "-append")


def parse(option: str) -> list[tuple[str, str]]:
    """Read `head,key=value,...` as QEMU does: a doubled comma is a comma."""
    items = option.replace(",,", "\0").split(",")
    return [(key, text.replace("\0", ",")) for key, _, text in (item.partition("=") for item in items)]


def test_the_whole_command_line_under_tcg() -> None:
    assert command_line(table(), SPEC, SERIAL) == [
        "/usr/bin/qemu-system-x86_64",
        *("-name", "sandbox-pod,debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot", "-S"),
        *("-sandbox", DENY_ALL),
        *("-object", "memory-backend-memfd,id=memory,size=512M,share=on,seal=on"),
        *("-machine", "q35,memory-backend=memory,usb=off,vmport=off,smbus=off,sata=off,dump-guest-core=off"),
        *("-accel", "tcg,thread=multi,tb-size=128"),
        *("-cpu", "max,-svm,min-xlevel=0x80000008"),
        *("-smp", "cpus=2"),
        *("-m", "512M"),
        *("-bios", "qboot.rom"),
        *("-kernel", "/k/vmlinuz"),
        *("-initrd", "/k/initrd"),
        "-append",
        "console=ttyS0 reboot=k panic=-1 random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1 "
        "tsc=unstable no_timer_check quiet root=/dev/vda rootfstype=erofs ro agent.log=debug quiet",
        *("-chardev", "socket,id=monitor,fd=3"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-chardev", "socket,id=console,fd=4"),
        *("-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,id=serial,max_ports=2"),
        *("-chardev", "socket,id=agent,fd=5"),
        *("-device", "virtserialport,bus=serial.0,chardev=agent,name=org.kata.agent.0"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", "virtio-rng-pci,rng=entropy"),
        *(
            "-blockdev",
            "driver=raw,node-name=image,read-only=on,file.driver=file,file.filename=/k/image,file.locking=off",
        ),
        *("-device", "virtio-blk-pci,drive=image,num-queues=1,queue-size=128"),
        *("-chardev", "socket,id=filesystem,fd=6"),
        *("-device", "vhost-user-fs-pci,chardev=filesystem,tag=kataShared,queue-size=1024"),
    ]


def test_kvm_uses_the_hosts_cpu() -> None:
    argv = command_line(table(accelerator="kvm", cpu_features="pmu=off"), SPEC, SERIAL)
    assert value(argv, "-accel") == "kvm"
    assert value(argv, "-cpu") == "host,-vmx,-svm,pmu=off"


def test_the_virtualization_that_qemu_emulates_is_hidden_and_the_width_of_addresses_is_not() -> None:
    argv = command_line(table(accelerator="tcg", cpu_features="rdrand=off"), SPEC, SERIAL)
    assert value(argv, "-cpu") == "max,-svm,min-xlevel=0x80000008,rdrand=off"


@pytest.mark.parametrize(("accelerator", "model"), [("kvm", "host"), ("tcg", "max")])
def test_the_guest_may_be_shown_virtualization(accelerator: str, model: str) -> None:
    argv = command_line(table(accelerator=accelerator, disable_nested_virtualization=False), SPEC, SERIAL)
    assert value(argv, "-cpu") == model


def test_the_operators_machine_properties_come_last_so_that_they_win() -> None:
    argv = command_line(table(machine_type="pc", machine_accelerators="usb=on"), SPEC, SERIAL)
    assert value(argv, "-machine").startswith("pc,")
    assert value(argv, "-machine").endswith(",usb=on")


def test_memory_of_huge_pages_and_memory_that_is_allocated_before() -> None:
    argv = command_line(table(enable_hugepages=True, enable_mem_prealloc=True), SPEC, SERIAL)
    memory = next(argument for argument in argv if argument.startswith("memory-backend"))
    assert memory.endswith(",share=on,seal=on,hugetlb=on,hugetlbsize=2M,prealloc=on")


def test_block_devices_have_threads_and_queues_of_their_own() -> None:
    argv = command_line(table(enable_iothreads=True, indep_iothreads=2, num_queues=2), SPEC, SERIAL)
    assert [item for item in argv if item.startswith("iothread,")] == [
        f"iothread,id=block-{number}" for number in range(3)
    ]
    assert "virtio-blk-pci,drive=image,num-queues=2,queue-size=128,iothread=block-0" in argv


def test_the_machine_starts_with_the_configured_firmware_which_is_shown_to_it() -> None:
    configured = table(firmware=Path("/f/OVMF.fd"))
    assert value(command_line(configured, SPEC, SERIAL), "-bios") == "/f/OVMF.fd"
    assert Path("/f/OVMF.fd") in shown(configured, SPEC, SERIAL).files


def test_memory_that_the_guest_has_freed_is_given_back() -> None:
    argv = command_line(table(reclaim_guest_freed_memory=True), SPEC, SERIAL)
    assert "virtio-balloon-pci,free-page-reporting=on" in argv


def test_the_shared_file_systems_queue_has_the_configured_size() -> None:
    argv = command_line(table(virtio_fs_queue_size=256), SPEC, SERIAL)
    assert any(argument.endswith("tag=kataShared,queue-size=256") for argument in argv)


def test_vsock_in_place_of_the_serial_port() -> None:
    argv = command_line(table(), SPEC, Devices(vsock_cid=4711))
    assert "vhost-vsock-pci,vhostfd=5,guest-cid=4711" in argv
    line = argv[argv.index("-append") + 1].split()
    assert "agent.host_ports=reserved" in line, "any user of the host could ask the agent"
    assert not any("virtserialport" in argument for argument in argv)


TAPS = (
    Tap("tap0", "tap0_kata", "02:00:00:00:00:01", (20, 21)),
    Tap("tap1", "tap1_kata", "02:00:00:00:00:02", (22,)),
)


@pytest.mark.parametrize("disabled", [True, False])
@pytest.mark.parametrize("present", [True, False])
def test_the_kernel_moves_packets_where_it_can_and_may(present: bool, disabled: bool) -> None:
    spec, devices = replace(SPEC, taps=TAPS), Devices(vsock_cid=None, vhost_net=present)
    one, vhost = table(disable_vhost_net=disabled), present and not disabled
    carrier = ",vhost=on,vhostforce=on" if vhost else ""
    argv = command_line(one, spec, devices)
    assert [argument for argument in argv if argument.startswith("tap,")] == [
        f"tap,id=tap0,fds=7:8{carrier}",
        f"tap,id=tap1,fds=9{carrier}",
    ]
    assert (VHOST_NET in shown(one, spec, devices).devices) == vhost
    assert VHOST_NET not in shown(one, SPEC, devices).devices


def test_only_what_the_machine_has() -> None:
    argv = command_line(table(), replace(SPEC, initrd=None, image=None, shared=None), SERIAL)
    assert "-initrd" not in argv
    assert "-blockdev" not in argv
    assert not any("vhost-user-fs" in argument for argument in argv)
    assert "root=" not in value(argv, "-append")


@pytest.mark.parametrize("sandbox", ["on", "on,obsolete=allow", DENY_ALL])
def test_the_sandbox_is_passed_as_it_is_written(sandbox: str) -> None:
    assert value(command_line(table(seccompsandbox=sandbox), SPEC, SERIAL), "-sandbox") == sandbox


@pytest.mark.parametrize("sandbox", ["", "off"])
def test_no_sandbox_is_no_argument(sandbox: str) -> None:
    assert "-sandbox" not in command_line(table(seccompsandbox=sandbox), SPEC, SERIAL)


def test_it_is_never_a_daemon_and_never_drops_privileges_itself() -> None:
    argv = command_line(table(), SPEC, SERIAL)
    assert not {"-daemonize", "-runas", "-chroot"} & set(argv)


def test_debugging_lets_the_kernel_speak() -> None:
    assert "quiet" not in kernel_command_line(
        table(enable_debug=True), replace(SPEC, kernel_parameters=()), SERIAL
    )


def test_a_partitioned_image_has_its_root_in_the_first_partition(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * 512)
    assert is_partitioned(image)
    devices = Devices(vsock_cid=None, image_partitioned=True)
    assert "root=/dev/vda1 " in kernel_command_line(table(), SPEC, devices)


@pytest.mark.parametrize("content", [b"", b"\x55\xaa", b"\0" * 2048], ids=["empty", "short", "bare"])
def test_other_images_are_one_file_system(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    assert not is_partitioned(image)


def test_a_command_line_that_the_kernel_would_cut_off_is_refused() -> None:
    room = LIMIT - len(kernel_command_line(table(), replace(SPEC, kernel_parameters=()), SERIAL)) - 1
    assert len(kernel_command_line(table(), replace(SPEC, kernel_parameters=("x" * room,)), SERIAL)) == 2047
    with pytest.raises(LaunchError, match="2048 bytes, the kernel reads 2047"):
        kernel_command_line(table(), replace(SPEC, kernel_parameters=("x" * (room + 1),)), SERIAL)


PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)


@given(name=PRINTABLE, tag=PRINTABLE)
def test_no_path_or_tag_adds_a_property(name: str, tag: str) -> None:
    path = Path("/", name.replace("/", "_"))
    spec = replace(SPEC, image=path, shared=SharedDirectory(path, tag))
    argv = command_line(table(entropy_source=path), spec, SERIAL)
    disk = parse(value(argv, "-blockdev"))
    assert disk == [
        ("driver", "raw"),
        ("node-name", "image"),
        ("read-only", "on"),
        ("file.driver", "file"),
        ("file.filename", str(path)),
        ("file.locking", "off"),
    ]
    filesystem = next(parse(argument) for argument in argv if argument.startswith("vhost-user-fs-pci"))
    assert filesystem[1:] == [("chardev", "filesystem"), ("tag", tag), ("queue-size", "1024")]
    assert parse(next(argument for argument in argv if argument.startswith("rng-random")))[2] == (
        "filename",
        str(path),
    )
