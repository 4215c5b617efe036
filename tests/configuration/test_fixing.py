"""--fix: what it fixes, what it leaves alone, and that the rest of the file stays."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_configuration import Severity, lint
from kata_configuration.tell import fixing

Write = Callable[..., Path]

COMMENTED = """\
# ours
[hypervisor.qemu]  # the machine
kernel = "/boot/vmlinuz"   # of the guest
image = "/srv/image.erofs"

  # how tightly
  secompsandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" # all four

[runtime]
enable_debug = false
"""


def fix(path: Path) -> str:
    """Fix a file and its drop-ins in place and return the file's text."""
    for change in fixing.find_changes(path, check_host=False):
        fixing.write(change)
    return path.read_bytes().decode()


def errors(path: Path) -> list[str]:
    """Return the codes of a file's errors."""
    return [found.code for found in lint(path, check_host=False) if found.severity is Severity.ERROR]


def test_a_misspelled_key_is_one_line(write: Write) -> None:
    path = write(COMMENTED)
    (change,) = fixing.find_changes(path, check_host=False)
    assert [found.code for found in change.fixed] == ["KATA201"]
    assert path.read_text() == COMMENTED
    assert fix(path) == COMMENTED.replace("secompsandbox", "seccompsandbox")
    assert lint(path, check_host=False) == ()


def test_the_change_is_shown_as_a_diff(write: Write) -> None:
    path = write('[runtime]\nlog_levle = "info"\nx = "\x1b[31m"\n')
    (change,) = fixing.find_changes(path, check_host=False)
    assert str(change).splitlines() == [
        f"--- {path}",
        f"+++ {path}",
        "@@ -1,3 +1,3 @@",
        " [runtime]",
        '-log_levle = "info"',
        '+log_level = "info"',
        ' x = "\N{REPLACEMENT CHARACTER}[31m"',
    ]


def test_line_ends_stay(write: Write) -> None:
    text = COMMENTED.replace("\n", "\r\n")
    assert fix(write(text)) == text.replace("secompsandbox", "seccompsandbox")
    mixed = 'é = 1\r\n[runtime]\n\r\nlog_levle = "info"\r\nenable_debug = "true" # x\n'
    expected = 'é = 1\r\n[runtime]\n\r\nlog_level = "info"\r\nenable_debug = true # x\n'
    assert fix(write(mixed)) == expected


QEMU = '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n'

CASES = [
    ("a boolean in quotes", QEMU + 'enable_debug = "false"\n', QEMU + "enable_debug = false\n"),
    ("an integer in quotes", QEMU + 'default_vcpus = "2"  # two\n', QEMU + "default_vcpus = 2  # two\n"),
    (
        "another spelling that repeats a key",
        QEMU + 'seccompsandbox = "on"\n# why\nseccomp_sandbox = "on" # again\nenable_debug = false\n',
        QEMU + 'seccompsandbox = "on"\n# why\nenable_debug = false\n',
    ),
    ("a misspelled table", QEMU.replace("qemu", "qmeu"), QEMU),
    (
        "a misspelled value",
        QEMU + '[runtime]\nlog_level = "inf"\n',
        QEMU + '[runtime]\nlog_level = "info"\n',
    ),
    (
        "an annotation's whole name",
        QEMU + 'enable_annotations = ["io.katacontainers.config.hypervisor.default_memory"]\n',
        QEMU + 'enable_annotations = ["default_memory"]\n',
    ),
    (
        "a group of the sandbox value",
        QEMU + 'seccompsandbox = "on,obselete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"\n',
        QEMU + 'seccompsandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"\n',
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_has_one_right_answer_is_mended(write: Write, before: str, after: str) -> None:
    path = write(before)
    assert fix(path) == after
    assert errors(path) == []


LEFT_ALONE = [
    ("a clean file", QEMU),
    ("a key that is there in its right spelling", QEMU + 'seccompsandbox = "on"\nsecompsandbox = "off"\n'),
    ("spellings that differ", QEMU + 'seccompsandbox = "on"\nseccomp_sandbox = "off"\n'),
    ("a key without resemblance", QEMU + "wibble = 1\n"),
    ("a missing key", '[hypervisor.qemu]\nimage = "/i"\n'),
    ("a number out of range", QEMU + "default_vcpus = 0\n"),
    ("what is no TOML", QEMU + "default_vcpus = \n"),
]


@pytest.mark.parametrize("text", [case[1] for case in LEFT_ALONE], ids=[case[0] for case in LEFT_ALONE])
def test_what_has_none_is_left_alone(write: Write, text: str) -> None:
    path = write(text)
    assert fixing.find_changes(path, check_host=False) == ()


def test_drop_ins_are_mended_too(write: Write, valid_text: str) -> None:
    path = write(valid_text)
    drop_in = path.parent / "config.d" / "10.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[runtime]\nlog_levle = "info"\n')
    assert fix(path) == valid_text
    assert drop_in.read_text() == '[runtime]\nlog_level = "info"\n'


def test_links_and_modes_stay(write: Write, tmp_path: Path) -> None:
    path = write(COMMENTED)
    path.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path.name)
    fix(link)
    assert link.is_symlink()
    assert errors(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["configuration.toml", "link.toml"]


pieces = st.lists(
    st.sampled_from(
        [
            '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n',
            "[hypervisor.qmeu]\n",
            "[agent.kata]\n",
            "[agnt.kata]\n",
            "[runtime]\n",
            'secompsandbox = "on"\n',
            'seccomp_sandbox = "on"\n',
            'seccompsandbox = "on"\n',
            'enable_debug = "true"\n',
            "enable_debug = true # é\n",
            'log_levle = "inf"\r\n',
            "default_vcpus = '2'\n",
            "kernel_modules = [ # x\n 'a',\n]\n",
            "runtime.log_level = 'inf'\n",
            'enable_annotations = ["io.katacontainers.config.agent.enable_debug", "default_memroy"]\n',
            "default_memory = \n",
            "disable_seccomp = true\n",
            "# comment\n",
        ]
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(pieces)
def test_mending_is_idempotent_and_makes_nothing_worse(write: Write, parts: list[str]) -> None:
    path = write("".join(parts))
    before = lint(path, check_host=False)
    fixed = fix(path)
    after = lint(path, check_host=False)
    assert fix(path) == fixed
    if not [found for found in before if found.edits]:
        assert fixed == "".join(parts)
    if not before:
        assert not after
    assert {found.code for found in after} & {"KATA101", "KATA102"} <= {found.code for found in before}
    comments = [part for part in parts if part.startswith("#")]
    assert fixed.count("# comment") == len(comments)


FIRECRACKER = (
    '[hypervisor.firecracker]\nkernel = "/k"\nimage = "/i"\n[runtime]\nhypervisor_name = "firecracker"\n'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # To the table of the selected hypervisor, by the name that the file has for it.
        (
            f"{FIRECRACKER}default_memory = 4096\n",
            FIRECRACKER.replace("[runtime]", "default_memory = 4096\n[runtime]"),
        ),
        (
            f"{FIRECRACKER}default_memory = 4096\n".replace("firecracker", "cloud-hypervisor", 1).replace(
                '"firecracker"', '"clh"'
            ),
            None,
        ),
        # Not to one that is not there, nor one that does not have it, nor over what it has; no path.
        ("[runtime]\ndefault_memory = 4096\n", ""),
        (f'{FIRECRACKER}machine_type = "q35"\n', ""),
        (f"{FIRECRACKER}default_memory = 4096\n".replace("image", "default_memory = 512\nimage"), ""),
        (f'{FIRECRACKER}path = "/usr/bin/kata-runtime"\n', ""),
    ],
)
def test_a_stray_key_goes_to_the_selected_hypervisor(
    write: Callable[..., Path], text: str, expected: str | None
) -> None:
    changes = fixing.find_changes(write(text), check_host=False)
    if expected == "":
        assert changes == ()
        return
    (change,) = changes
    if expected is not None:
        assert change.after == expected
    assert "[hypervisor.qemu]" not in change.after
    assert change.after.count("[hypervisor.") == 1
