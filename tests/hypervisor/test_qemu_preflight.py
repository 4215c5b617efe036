"""What a host lacks is reported before anything is started, with what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.qemu.preflight import check_host

MEMINFO = "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\nSwapTotal: 1048576 kB\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A host's directory with a kernel, a /dev/kvm and a /proc/meminfo."""
    for name, content in (("vmlinuz", ""), ("kvm", ""), ("meminfo", MEMINFO)):
        (tmp_path / name).write_text(content)
    return tmp_path / "vmlinuz"


def check(present: Path, *, settings: dict[str, Any] | None = None, **changes: Any) -> tuple[str, ...]:
    """Check a fit machine, with these changes, on the host that lies in the kernel's directory."""
    table = QemuHypervisor(**{"kernel": present, "path": "/bin/true", **(settings or {})})
    host = present.parent
    machine = VmSpec(sandbox_id="pod", directory=host, vcpus=1, memory_mib=512, kernel=present)
    files = {"kvm": host / "kvm", "meminfo": host / "meminfo", "huge_pages": host / "huge"}
    return check_host(table, replace(machine, **changes), **files)


def test_a_fit_host_has_nothing_to_say(kernel: Path) -> None:
    assert check(kernel) == ()


def test_no_kvm_names_the_way_out(kernel: Path) -> None:
    (kernel.parent / "kvm").unlink()
    with pytest.raises(HostUnfitError, match=r'kvm: No such file.*set accelerator = "tcg"'):
        check(kernel)
    assert check(kernel, settings={"accelerator": "tcg"}) == ()


@pytest.mark.parametrize("part", ["kernel", "initrd", "image"])
def test_a_missing_file_names_its_key(kernel: Path, part: str) -> None:
    with pytest.raises(HostUnfitError, match=f"guest's {part}: .*none: No such file.*correct {part} in"):
        check(kernel, settings=None, **{part: kernel.parent / "none"})


def test_a_missing_source_of_random_numbers(kernel: Path) -> None:
    with pytest.raises(HostUnfitError, match="correct entropy_source in"):
        check(kernel, settings={"entropy_source": "/none"})


@pytest.mark.parametrize("path", ["/none", "/tmp", "/etc/passwd"])
def test_a_qemu_that_cannot_be_run(kernel: Path, path: str) -> None:
    with pytest.raises(HostUnfitError, match=r"cannot run qemu: .* is not an executable file"):
        check(kernel, settings={"path": path})


def test_memory_that_can_never_fit_is_refused(kernel: Path) -> None:
    with pytest.raises(
        HostUnfitError, match="5121 MiB of memory: this host has 4096 MiB and 1024 MiB of swap"
    ):
        check(kernel, memory_mib=5121)


def test_memory_that_does_not_fit_now_is_a_warning(kernel: Path) -> None:
    assert check(kernel, memory_mib=1025) == (
        "the guest may use 1025 MiB of memory, this host has 1024 MiB left",
    )


def reserve(present: Path, **numbers: int) -> None:
    """The kernel's word about its huge pages."""
    (present.parent / "huge").mkdir(exist_ok=True)
    for name, number in numbers.items():
        (present.parent / "huge" / f"{name}_hugepages").write_text(f"{number}\n")


def test_huge_pages_that_are_not_reserved_are_refused(kernel: Path) -> None:
    huge = {"enable_hugepages": True}
    with pytest.raises(HostUnfitError, match=r"No such file or directory; load a kernel .*enable_hugepages"):
        check(kernel, settings=huge)
    reserve(kernel, nr=300, free=280, resv=100)
    sentence = r"256 huge pages of 2 MiB: this host has 180 left; reserve more \(sysctl vm.nr_hugepages=376\)"
    with pytest.raises(HostUnfitError, match=sentence):
        check(kernel, settings=huge)
    reserve(kernel, free=356)
    assert check(kernel, settings=huge) == ()
    assert check(kernel, settings=huge, memory_mib=511) == ()
    with pytest.raises(HostUnfitError, match="257 huge pages"):
        check(kernel, settings=huge, memory_mib=513)


def test_running_unconfined_is_a_warning(kernel: Path) -> None:
    (warning,) = check(kernel, settings={"seccompsandbox": "off"})
    assert 'qemu runs unconfined: seccompsandbox = "off"' in warning
