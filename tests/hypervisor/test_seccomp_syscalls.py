"""The tables of system calls against what else knows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kata_hypervisor import libc
from kata_hypervisor.seccomp import syscalls
from kata_hypervisor.seccomp.compiler import load_library

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.parametrize("arch", syscalls.ARCHITECTURES)
def test_libseccomp_agrees_wherever_it_knows_the_name(arch: str) -> None:
    library = load_library()
    known = {
        name: number
        for name in syscalls.numbers(arch)
        if (number := library.resolve_syscall(getattr(library.Arch, arch.upper()), name)) >= 0
    }
    assert len(known) > 300
    assert known == {name: syscalls.number_of(name, arch) for name in known}


@pytest.mark.parametrize("arch", libc.NUMBERS)
def test_the_calls_by_number_are_those_of_the_tables(arch: str) -> None:
    assert libc.NUMBERS[arch] == {name: syscalls.number_of(name, arch) for name in libc.NUMBERS[arch]}


@pytest.mark.parametrize("arch", syscalls.ARCHITECTURES)
def test_libseccomp_knows_no_call_that_we_lack(arch: str) -> None:
    library = load_library()
    code = getattr(library.Arch, arch.upper())
    for number in range(max(syscalls.numbers(arch).values()) + 20):
        try:
            name = library.resolve_syscall(code, number).decode()
        except ValueError:
            continue
        assert syscalls.name_of(number, arch) == name


def test_the_kernels_header_agrees() -> None:
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is missing (linux-libc-dev)")
    found = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    assert len(found) > 300
    assert {name: syscalls.number_of(name) for name in found} == {n: int(v) for n, v in found.items()}


@pytest.mark.parametrize("arch", syscalls.ARCHITECTURES)
def test_names_and_numbers_are_each_others_inverse(arch: str) -> None:
    table = syscalls.numbers(arch)
    assert len(set(table.values())) == len(table)
    assert all(syscalls.name_of(number, arch) == name for name, number in table.items())
    assert table["file_setattr"] == 469


def test_what_is_not_there() -> None:
    assert syscalls.number_of("umount") is None
    assert syscalls.number_of("open", "aarch64") is None
    assert syscalls.name_of(-1) is None
    assert syscalls.name_of(400) is None
    with pytest.raises(LookupError, match="no table of system calls for 'vax': there are x86_64, aarch64"):
        syscalls.number_of("read", "vax")
