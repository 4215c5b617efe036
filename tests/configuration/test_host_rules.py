"""What the linter says of this host, on made files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import lint

Write = Callable[..., Path]


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A file that stands for all of a machine's, in a directory that only its owner changes."""
    path = tmp_path / "host" / "file"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    return path


@pytest.fixture
def text(guest: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration that is right on a host that is right."""
    monkeypatch.setattr("kata_configuration.judge.host.JIT", guest.parent / "jit")
    (guest.parent / "jit").write_text("1\n")
    return (
        f'[hypervisor.qemu]\npath = "{guest}"\nkernel = "{guest}"\nimage = "{guest}"\naccelerator = "tcg"\n'
        f'virtio_fs_daemon = "{guest}"\n'
    )


def findings(path: Path) -> list[tuple[str, str]]:
    return [(found.code, found.key.rpartition(".")[2]) for found in lint(path)]


def test_a_host_that_is_right(write: Write, text: str) -> None:
    assert findings(write(text)) == []


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_files_that_others_may_write(write: Write, text: str, guest: Path, mode: int) -> None:
    guest.chmod(mode)
    keys = ["path", "kernel", "image", "virtio_fs_daemon"]
    assert findings(write(text)) == [("KATA605", key) for key in keys]
    [found, *_] = lint(write(text))
    assert found.security
    assert (
        found.message
        == f"{guest} has the mode {mode:04o}, which lets others write: who may do that changes what runs"
    )
    assert found.hint == f"chmod go-w {guest}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["file", "."])
def test_files_of_another_user(write: Write, text: str, guest: Path, name: str) -> None:
    """He may change them, or put others in their place, whatever the mode is now."""
    place = guest.parent / name
    os.chown(place, 1000, 1000)
    assert {code for code, _ in findings(write(text))} == {"KATA605"}
    [found, *_] = lint(write(text))
    assert found.message.startswith(f"{place} is owned by user 1000, who is neither root nor the user")
    assert found.hint == f"chown root {place}"


def test_a_link_to_where_others_may_write(write: Write, text: str, guest: Path, tmp_path: Path) -> None:
    (open_to_all := tmp_path / "open").mkdir()
    guest.rename(open_to_all / "file")
    guest.symlink_to(open_to_all / "file")
    assert findings(write(text)) == []
    open_to_all.chmod(0o777)
    assert {code for code, _ in findings(write(text))} == {"KATA605"}


@pytest.mark.parametrize(("mode", "codes"), [(0o777, {"KATA605"}), (0o1777, set())])
def test_directories_that_others_may_write(
    write: Write, text: str, guest: Path, mode: int, codes: set[str]
) -> None:
    guest.parent.chmod(mode)
    assert {code for code, _ in findings(write(text))} == codes


@pytest.mark.parametrize(
    ("jit", "sandbox", "expected"),
    [
        ("0", 'seccompsandbox = "on,spawn=deny,elevateprivileges=deny,resourcecontrol=deny"\n', ["KATA606"]),
        ("0", "", ["KATA606"]),
        ("0", 'seccompsandbox = "off"\n', ["KATA502"]),
        ("1", "", []),
        ("2", "", []),
    ],
)
def test_filters_that_are_interpreted(
    write: Write, text: str, guest: Path, jit: str, sandbox: str, expected: list[str]
) -> None:
    (guest.parent / "jit").write_text(f"{jit}\n")
    assert [code for code, _ in findings(write(text + sandbox))] == expected


def test_a_kernel_without_the_setting(write: Write, text: str, guest: Path) -> None:
    (guest.parent / "jit").unlink()
    assert findings(write(text)) == []


def test_more_than_the_host_has(write: Write, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    path = write(text + "default_vcpus = 3\ndefault_maxvcpus = 4\ndefault_memory = 16777216\n")
    assert findings(path) == [
        ("KATA604", "default_vcpus"),
        ("KATA604", "default_maxvcpus"),
        ("KATA604", "default_memory"),
    ]
    assert lint(path)[0].message == "3 is more than the 2 CPUs of this host, and becomes 2"


def test_the_host_is_asked_about_the_selected_hypervisor_only(write: Write, text: str) -> None:
    others = "".join(
        f'[hypervisor.{name}]\nkernel = "/absent"\nimage = "/absent"\ndefault_memory = 16777216\n'
        for name in ("clh", "firecracker", "dragonball")
    )
    assert findings(write(text + others)) == []


def test_kvm_is_demanded_of_drivers_that_know_nothing_else(
    write: Write, text: str, guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata_configuration.judge.host.KVM", guest.parent / "absent")
    other = text.replace("qemu", "clh").replace('accelerator = "tcg"\n', "")
    path = write(other + '[runtime]\nhypervisor_name = "clh"\n')
    assert {code for code, _ in findings(path)} == {"KATA603"}
    spt = f'[hypervisor.solo5-spt]\npath = "{guest}"\n[runtime]\nhypervisor_name = "solo5-spt"\n'
    assert findings(write(spt)) == []


@pytest.mark.parametrize(
    ("head", "codes"),
    [
        (b"\x7fELF", []),
        (bytes(0x202) + b"HdrS", []),
        (bytes(0x202) + b"HdrT", [("KATA607", "kernel")]),
        (b"root:x:0:0:root:/root:/bin/bash\n", [("KATA607", "kernel")]),
        (b"", [("KATA607", "kernel")]),
    ],
)
def test_a_kernel_that_is_none(write: Write, text: str, tmp_path: Path, head: bytes, codes: object) -> None:
    kernel = tmp_path / "host" / "kernel"
    kernel.write_bytes(head)
    kernel.chmod(0o644)
    assert findings(write(re.sub('kernel = ".*"', f'kernel = "{kernel}"', text))) == codes


@pytest.mark.parametrize(
    ("source", "code"), [("/dev/zero", ""), ("/etc/passwd", "KATA608"), ("/x", "KATA601")]
)
def test_random_numbers_come_from_a_device(write: Write, text: str, source: str, code: str) -> None:
    found = [
        item for item in lint(write(f'{text}entropy_source = "{source}"\n')) if item.key.endswith("source")
    ]
    assert [item.code for item in found] == ([code] if code else [])
    assert all(item.security == (code == "KATA608") for item in found)


@pytest.mark.parametrize(
    ("reserved", "says"), [("255", "255"), (None, "0"), ("256", None)], ids=["too few", "none", "enough"]
)
def test_huge_pages_that_the_host_has_not_reserved(
    write: Write,
    text: str,
    guest: Path,
    monkeypatch: pytest.MonkeyPatch,
    reserved: str | None,
    says: str | None,
) -> None:
    monkeypatch.setattr("kata_configuration.judge.host.HUGE_PAGES", guest.parent / "huge")
    if reserved is not None:
        (guest.parent / "huge").write_text(f"{reserved}\n")
    found = lint(write(text + "default_memory = 512\nenable_hugepages = true\n"))
    message = f"a machine takes 256 huge pages of 2 MiB, this host has reserved {says}"
    assert [item.message for item in found] == ([message] if says else [])
