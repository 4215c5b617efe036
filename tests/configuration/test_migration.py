"""Migration: what is kept, what changes, that each change has its reason, and what is left to decide."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import corpus
from kata_configuration import Severity, lint
from kata_configuration.judge.removed_keys import KEYS
from kata_configuration.parse.toml_text import value_text
from kata_configuration.tell.migration import Migration, Weight, migrate
from kata_runtime.ctl.main import main

Write = Callable[..., Path]

GO = """\
# Ours since 2021.

[hypervisor.qemu]
kernel = "/opt/kata/vmlinux"
image = "/opt/kata/kata.img"   # from the release

# How often the guest's disk
# may be asked.
msize_9p = 16384

# Memory is cheap.
default_memory = 4096
enable_annotations = ["default_memory", "enable_iommu", "["]
shared_fs = "virtio-9p"
seccompsandbox = ""
# Devices appear here.
hotplug_vfio_on_root_bus = true

[factory]
# Templates!
enable_template = true

[agent.kata]
# The guest is slow, in seconds.
dial_timeout = 60
enable_debug = "true"

[runtime]
internetworking_model = "tcfilter"
# Images are large.
create_container_timeout = 600   # ten minutes
disable_guest_seccomp = false
"""

OURS = """\
# Ours since 2021.

[hypervisor.qemu]
kernel = "/opt/kata/vmlinux"
image = "/opt/kata/kata.img"   # from the release

# Memory is cheap.
default_memory = 4096
enable_annotations = ["default_memory"]
shared_fs = "virtio-fs"

[agent.kata]
# Images are large.
create_container_timeout = 600   # ten minutes

# The guest is slow, in seconds.
# Time that the guest has to boot and answer; at least dial_timeout_ms. (in milliseconds, 1 to
# 3600000)
reconnect_timeout_ms = 60000
enable_debug = true

[runtime]
internetworking_model = "tcfilter"
disable_guest_seccomp = false
"""

CHANGES = [
    (17, "dropped hypervisor.qemu.hotplug_vfio_on_root_bus = true", Weight.LOST),
    (19, "dropped [factory]", Weight.LOST),
    (14, 'changed hypervisor.qemu.shared_fs from "virtio-9p" to "virtio-fs"', Weight.CHANGED),
    (15, 'dropped hypervisor.qemu.seccompsandbox = ""', Weight.CHANGED),
    (25, "renamed agent.kata.dial_timeout to reconnect_timeout_ms = 60000", Weight.CHANGED),
    (26, 'changed agent.kata.enable_debug from "true" to true', Weight.CHANGED),
    (31, "moved runtime.create_container_timeout to [agent.kata]", Weight.CHANGED),
    (9, "dropped hypervisor.qemu.msize_9p = 16384", Weight.HARMLESS),
    (13, 'dropped "enable_iommu" from hypervisor.qemu.enable_annotations', Weight.HARMLESS),
    (13, 'dropped "[" from hypervisor.qemu.enable_annotations', Weight.HARMLESS),
]


def of(text: str) -> Migration:
    return migrate(text, "", Path("new.toml"))


def test_a_file_of_the_go_runtime() -> None:
    migration = of(GO)
    assert migration.text == OURS
    assert [(change.line, change.what, change.weight) for change in migration.changes] == CHANGES
    assert all(change.reason for change in migration.changes)
    assert (migration.left, migration.complete) == ((), False)


def test_what_is_ours_already_stays_as_it_is() -> None:
    assert of(OURS) == (OURS, (), ())


QEMU = '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The only table is selected by being there.
        (
            '[hypervisor.clh]\nkernel = "/k"\nimage = "/i"\n\n[runtime]\nenable_debug = false\n',
            '[hypervisor.clh]\nkernel = "/k"\nimage = "/i"\n\n[runtime]\nhypervisor_name = "clh"\n'
            "enable_debug = false\n",
        ),
        (
            '[hypervisor.clh]\nkernel = "/k"\nimage = "/i"\n',
            '[hypervisor.clh]\nkernel = "/k"\nimage = "/i"\n\n[runtime]\nhypervisor_name = "clh"\n',
        ),
        # What is there in its new form wins.
        (
            f"{QEMU}[agent.kata]\ndial_timeout = 9\nreconnect_timeout_ms = 8000\n",
            f"{QEMU}[agent.kata]\nreconnect_timeout_ms = 8000\n",
        ),
        (
            f"{QEMU}[agent.kata]\ncreate_container_timeout = 9\n[runtime]\ncreate_container_timeout = 8\n",
            f"{QEMU}[agent.kata]\ncreate_container_timeout = 9\n[runtime]\n",
        ),
        # A table that has to be made; tables in tables; arrays of tables.
        (
            f"{QEMU}[runtime]\ncreate_container_timeout = 8\n",
            f"{QEMU}[runtime]\n\n[agent.kata]\ncreate_container_timeout = 8\n",
        ),
        (
            f'{QEMU}[hypervisor.qemu.factory]\nenable_template = false\ntemplate_path = "/t"\n[runtime]\n',
            f"{QEMU}[runtime]\n",
        ),
        (
            f'{QEMU}[[hypervisor.qemu.guest_extension_images]]\nname = "a"\n\n'
            '[[hypervisor.qemu.guest_extension_images]]\nname = "b"\n[runtime]\n',
            f"{QEMU}\n[runtime]\n",
        ),
        # Contradictions of others.
        (f"{QEMU}[agent.kata]\ndial_timeout_ms = 130000\n", f"{QEMU}[agent.kata]\n"),
    ],
)
def test_what_becomes_of_a_text(text: str, expected: str) -> None:
    assert of(text).text == expected


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (QEMU + "frobnicate = 3\n", ["KATA201"]),
        (QEMU + "default_memory = 4\n", ["KATA302"]),
        (QEMU + "default_vcpus = 4\ndefault_maxvcpus = 2\n", ["KATA401"]),
        ('[hypervisor.qemu]\nkernel = "/k"\n', ["KATA205"]),
        ('[hypervisor.remote]\nhypervisor_socket = "/s"\n', ["KATA206"]),
    ],
)
def test_what_has_more_than_one_answer_is_left(text: str, codes: list[str]) -> None:
    migration = of(text)
    assert [found.code for found in migration.left] == codes
    assert not migration.complete


def test_a_lost_protection_is_said_and_left_to_decide() -> None:
    migration = of(f"{QEMU}confidential_guest = true\n")
    assert migration.text == QEMU
    assert [change.what for change in migration.changes if change.weight is Weight.PROTECTION] == [
        "dropped hypervisor.qemu.confidential_guest = true"
    ]
    assert all("( " not in change.reason for change in migration.changes)
    assert not migration.complete


def test_nothing_is_made_of_what_is_not_toml() -> None:
    migration = of("[hypervisor.qemu\nkernel = \n")
    assert (migration.text, migration.changes) == ("", ())
    assert {found.code for found in migration.left} >= {"KATA101"}


@pytest.mark.parametrize(("place", "key"), sorted(KEYS))
@pytest.mark.parametrize("value", [True, 30, "text"])
def test_every_removed_key_is_dealt_with(write: Write, place: str, key: str, value: object) -> None:
    table = {"hypervisor": "hypervisor.qemu", "agent": "agent.kata"}.get(place, place)
    head = "" if table == "hypervisor.qemu" else f"[{table}]\n"
    migration = of(f"{QEMU}{head}{key} = {value_text(value)}\n")
    assert [
        found for found in lint(write(migration.text), check_host=False) if found.key == f"{table}.{key}"
    ] == []
    assert [change.line for change in migration.changes][:1] == [5 if head else 4]


@pytest.mark.parametrize("name", corpus.names())
def test_no_broken_file_is_made_worse(name: str) -> None:
    case = corpus.read(name)
    try:
        text = case.file.read_bytes().decode().replace("\r\n", "\n").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return
    migration = of(text)
    before = [fault for fault in corpus.find(case) if fault.severity == "error"]
    errors = [found for found in migration.left if found.severity is Severity.ERROR]
    assert len(errors) <= len(before) or any(fault.code in ("KATA202", "KATA005") for fault in before)
    assert of(migration.text).changes == ()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(GO)
    command = ["config", "migrate", "--from", "runtime-go", str(old)]
    assert main(command) == 1
    printed = capsys.readouterr()
    heading = "# Made of a file of Kata's Go runtime by kata-ctl config migrate.\n\n"
    assert printed.out == heading + OURS
    lines = printed.err.splitlines()
    assert lines[0] == "lost: the source asked for this, and this version does not do it:"
    assert lines[3] == "changed:"
    assert lines[-1] == "dropped 3 that asked for nothing (--harmless lists them)"
    shown = [line.partition(": ")[0].strip() for line in lines if line.startswith("  ")]
    assert shown == [f"{old}:{line}" for line, _, weight in CHANGES if weight is not Weight.HARMLESS]
    main([*command, "--harmless"])
    assert capsys.readouterr().err.splitlines()[-4] == "dropped, and nothing is lost:"
    assert main([*command, "--output", str(new)]) == 1
    assert (new.read_text(), capsys.readouterr().out) == (heading + OURS, "")
    assert stat.S_IMODE(new.stat().st_mode) & 0o022 == 0
    assert main([*command, "--output", str(new)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "output"),
    [
        (f"{QEMU}disable_guest_selinux = false\n", 1, "lost protections: "),
        (f"{QEMU}default_memory = 4\n", 1, "4 is below the minimum"),
        ("?", 1, "is not TOML; correct this first:"),
        (None, 2, "does not exist"),
    ],
)
def test_the_command_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, status: int, output: str
) -> None:
    file = tmp_path / "old.toml"
    if text is not None:
        file.write_text(text)
    assert main(["config", "migrate", "--from", "runtime-rs", str(file)]) == status
    printed = capsys.readouterr()
    assert output in printed.err
    assert (printed.out == "") == (text in ("?", None))


def test_a_fault_of_the_source_names_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.toml"
    file.write_text("[hypervisor.qemu\n")
    assert main(["config", "migrate", "--from", "runtime-rs", str(file), "--output", "new.toml"]) == 1
    message = capsys.readouterr().err
    assert f"  {file}:1:" in message
    assert "new.toml" not in message


FIRECRACKER = (
    '[hypervisor.firecracker]\nkernel = "/k"\nimage = "/i"\n\n[runtime]\nhypervisor_name = "firecracker"\n'
)


@pytest.mark.parametrize(
    ("text", "expected", "codes"),
    [
        # A stray key goes to the table of the selected hypervisor, by the name that the file has for it.
        (
            f"{FIRECRACKER}default_memory = 4096\n",
            FIRECRACKER.replace('image = "/i"\n', 'image = "/i"\n').replace(
                "[hypervisor.firecracker]\n", "[hypervisor.firecracker]\ndefault_memory = 4096\n\n"
            ),
            [],
        ),
        # What the selected one does not have is not given to another one.
        (f'{FIRECRACKER}machine_type = "q35"\n', FIRECRACKER, []),
        # What the host runs is not for the tool to guess.
        (
            f'{QEMU}[runtime]\npath = "/usr/local/bin/kata-runtime"\n',
            f'{QEMU}[runtime]\npath = "/usr/local/bin/kata-runtime"\n',
            ["KATA204"],
        ),
    ],
)
def test_a_stray_key_goes_where_it_is_meant(text: str, expected: str, codes: list[str]) -> None:
    migration = of(text)
    assert migration.text == expected
    assert [found.code for found in migration.left] == codes


LOSSES = [
    ("hypervisor.qemu", 'extra_monitor_socket = "qmp"', Weight.LOST),
    ("hypervisor.qemu", 'block_device_driver = "virtio-scsi"', Weight.HARMLESS),
    ("agent.kata", "launch_process_timeout = 6", Weight.HARMLESS),
    ("hypervisor.qemu", 'cold_plug_vfio = "root-port"', Weight.LOST),
    ("hypervisor.qemu", "rx_rate_limiter_max_rate = 1000", Weight.LOST),
    ("hypervisor.qemu", 'pflashes = ["/f"]', Weight.LOST),
    ("hypervisor.qemu", "disable_block_device_use = true", Weight.HARMLESS),
    ("hypervisor.qemu", 'shared_fs = "none"\ndisable_block_device_use = true', Weight.LOST),
    ("agent.kata", "debug_console_enabled = true", Weight.LOST),
    ("runtime", "enable_pprof = true", Weight.LOST),
    ("hypervisor.qemu", 'ctlpath = "/c"', Weight.HARMLESS),
    ("hypervisor.qemu", "msize_9p = 4096", Weight.HARMLESS),
    ("hypervisor.qemu", "enable_iommu = false", Weight.HARMLESS),
    ("hypervisor.qemu", "disable_guest_selinux = false", Weight.PROTECTION),
    ("hypervisor.qemu", "rootless = true", Weight.HARMLESS),
    ("runtime", "sandbox_cgroup_only = false", Weight.CHANGED),
]


@pytest.mark.parametrize(("table", "line", "weight"), LOSSES, ids=[line for _, line, _ in LOSSES])
def test_what_did_something_is_lost_and_the_rest_is_not(table: str, line: str, weight: Weight) -> None:
    head = "" if table == "hypervisor.qemu" else f"[{table}]\n"
    migration = of(f"{QEMU}{head}{line}\n")
    assert [change.weight for change in migration.changes] == [weight]
    assert migration.complete == (weight > Weight.LOST)
