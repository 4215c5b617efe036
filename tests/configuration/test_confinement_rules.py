"""What opens the confinement is reported, and refused where no pod needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import ConfigurationError, lint, load
from kata_configuration.parse.toml_text import value_text
from kata_configuration.virtiofsd_arguments import find_faults

Write = Callable[..., Path]

QEMU = '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n'

ALLOWED = [
    [],
    ["--thread-pool-size=4", "--announce-submounts"],
    ["--thread-pool-size", "4", "--xattr", "--posix-acl"],
    ["--log-level", "debug", "-d", "-f"],
    ["--inode-file-handles=never", "--seccomp=kill"],
    ["-o", "xattr,no_flock,announce_submounts", "-o", "log_level=warn"],
    ["-oxattr,timeout=1.5", "-o", "writeback"],
]

REFUSED = [
    (["--sandbox=none"], 0, "chooses the sandbox of virtiofsd"),
    (["--sandbox", "none"], 0, "chooses the sandbox of virtiofsd"),
    (["--sandbox=namespace"], 0, "chooses the sandbox of virtiofsd"),
    (["-o", "sandbox=namespace"], 1, "chooses the sandbox of virtiofsd"),
    (["--inode-file-handles=prefer"], 0, "opens files by handles"),
    (["--inode-file-handles", "mandatory"], 1, "opens files by handles"),
    (["--syslog"], 0, "writes to the host's log, which virtiofsd does not see"),
    (["--seccomp=none"], 0, "opens the seccomp filter"),
    (["--seccomp=log"], 0, "opens the seccomp filter"),
    (["--xattr", "--seccomp", "none"], 2, "opens the seccomp filter"),
    (["-o", "source=/"], 1, "names the directory that the guest sees"),
    (["-osource=/"], 0, "names the directory that the guest sees"),
    (["-o", "xattr,source=/"], 1, "names the directory that the guest sees"),
    (["--shared-dir=/"], 0, "names the directory that the guest sees"),
    (["--shared-dir", "/"], 0, "names the directory that the guest sees"),
    (["-o", "modcaps=+sys_admin"], 1, "changes the capabilities"),
    (["--modcaps=+sys_admin"], 0, "changes the capabilities"),
    (["--modcaps", "+sys_admin"], 0, "changes the capabilities"),
    (["-o", "xattrmap=:map::user.:"], 1, "extended attributes"),
    (["--uid-map=:0:0:1:"], 0, "which users' files"),
    (["--fd=9"], 0, "names the connection"),
    (["--socket-path=/s"], 0, "names the connection"),
    (["--cache=always"], 0, "is what virtio_fs_cache sets"),
    (["--thread-pool-size=many"], 0, "none of the values"),
    (["--xattr=on"], 0, "takes none"),
    (["--annouce-submounts"], 0, "none of the arguments"),
    (["/"], 0, "none of the arguments"),
    (["-o"], 0, "none of the arguments"),
    (["--"], 0, "none of the arguments"),
    (["-s"], 0, "none of the arguments"),
]


@pytest.mark.parametrize("arguments", ALLOWED, ids=" ".join)
def test_arguments_of_virtiofsd_that_are_allowed(arguments: list[str]) -> None:
    assert list(find_faults(arguments)) == []


@pytest.mark.parametrize(
    ("arguments", "number", "message"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED]
)
def test_arguments_of_virtiofsd_that_are_refused(
    write: Write, arguments: list[str], number: int, message: str
) -> None:
    fault = next(iter(find_faults(arguments)))
    assert fault.number == number
    assert message in fault.message
    path = write(f"{QEMU}virtio_fs_extra_args = {value_text(arguments)}\n")
    found = lint(path, check_host=False)[0]
    assert (found.code, found.severity.value, found.security, found.line) == ("KATA507", "error", True, 4)
    assert found.key == f"hypervisor.qemu.virtio_fs_extra_args[{number}]"
    with pytest.raises(ConfigurationError, match="KATA507"):
        load(path, check_host=False)


def test_an_annotation_adds_no_argument_that_is_refused(write: Write) -> None:
    path = write(f'{QEMU}enable_annotations = ["virtio_fs_extra_args"]\n')
    name = "io.katacontainers.config.hypervisor.virtio_fs_extra_args"
    with pytest.raises(ConfigurationError, match="KATA507"):
        load(path, check_host=False, annotations={name: "--seccomp=none"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('machine_accelerators = "kernel_irqchip=split,vmport=off"', []),
        ('machine_accelerators = "accel=tcg"', [("KATA507", True)]),
        ('machine_accelerators = "dumpdtb=/etc/passwd"', [("KATA507", True)]),
        ('machine_accelerators = "usb=on,firmware=/f,accel=tcg"', [("KATA507", True)] * 2),
        ('machine_accelerators = "frobnicate=on"', [("KATA507", True)]),
        ('kernel_params = "quiet console=ttyS0 console=tty0"', []),
        ('kernel_params = "root=/dev/sda"', [("KATA508", True)]),
        ('kernel_params = "quiet init=/bin/sh rdinit=/bin/sh"', [("KATA508", True)] * 2),
        ('kernel_params = "quiet a quiet"', [("KATA404", False)]),
        ('kernel_params = "loglevel=3 b loglevel=7"', [("KATA404", False)]),
        ('kernel_params = "pci=realloc pci=nocrs"', []),
    ],
)
def test_what_the_machine_is_told(write: Write, line: str, expected: list[tuple[str, bool]]) -> None:
    found = lint(write(f"{QEMU}{line}\n"), check_host=False)
    assert [(item.code, item.security) for item in found] == expected
