"""One thing in a valid file is changed: the linter points at the line, or the rest means what it meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kata_configuration import Configuration, Severity, lint, load

Write = Callable[..., Path]

LINES = """\
[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd.img"
image = "/srv/image.erofs"
kernel_params = 'quiet foo="a b"'
cpu_features = "pmu=off, vmx=off"
default_vcpus = 2
default_memory = 1024
seccompsandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
virtio_fs_extra_args = ["--log-level", "info"]
enable_annotations = ["default_memory", "kernel_params"]
[agent.kata]
dial_timeout_ms = 20
kernel_modules = ["fuse"]
[runtime]
hypervisor_name = "qemu"
log_level = "debug"
""".splitlines()

# A line that is changed, by its number from 0, and what stands there then: one line, or more.
Change = tuple[int, str]

characters = st.sampled_from("abelnsxZ019\"'[]{}=,._-+#: \t\\é\0\x1b") | st.characters(
    exclude_characters="\n"
)
values = st.sampled_from(
    ["true", "2", "-1", "0", "0x10", "1_000", f"{2**63}", "1.5", "nan", "1979-05-27", "off", "“on”", ""]
) | st.sampled_from(
    ['""', '"text"', '"/a/path"', '"\\u0000"', '"""\na"""', "[]", '["a"]', "{}", "{ a = 1 }"],
)


@st.composite
def character_changes(draw: st.DrawFn) -> Change:
    """A line with one character more, less, or another."""
    number = draw(st.integers(0, len(LINES) - 1))
    line = LINES[number]
    at = draw(st.integers(0, len(line) - 1))
    skipped = draw(st.integers(0, 1))
    put_in = draw(characters) if draw(st.booleans()) or not skipped else ""
    return number, line[:at] + put_in + line[at + skipped :]


@st.composite
def token_changes(draw: st.DrawFn) -> Change:
    """A line with another value, two letters of its key swapped, twice, or with something behind it."""
    number = draw(st.sampled_from([number for number, line in enumerate(LINES) if "=" in line]))
    key, _, value = LINES[number].partition(" = ")
    at = draw(st.integers(0, len(key) - 2))
    return number, draw(
        st.sampled_from(
            [
                f"{key} = {draw(values)}",
                f"{key[:at]}{key[at + 1]}{key[at]}{key[at + 2 :]} = {value}",
                f"{key.upper()} = {value}",
                f"{key} {value}",
                f"{key}: {value}",
                f"{key} = {value}\n{key} = {value}",
                f"{key} = {value} {draw(values)}",
                f"{key} = {value} # {draw(values)}".replace("\n", " "),
                f"{key}.more = {value}",
                f"  \t{key}   =\t{value}  ",
                f'"{key}" = {value}',
            ]
        )
    )


def check(write: Write, change: Change) -> None:
    number, line = change
    path = write(("\n".join(LINES) + "\n").encode())
    before = load(path, check_host=False)
    text = "\n".join([*LINES[:number], line, *LINES[number + 1 :]]) + "\n"
    path = write(text.encode("utf-8", "surrogatepass"))
    changed = range(number + 1, number + 2 + line.count("\n"))
    found = lint(path, check_host=False)
    if any(item.severity is Severity.ERROR for item in found):
        # A comment has no fault; what is missing without the line is reported elsewhere.
        if not line.lstrip(" \t").startswith("#"):
            errors = [item for item in found if item.severity is Severity.ERROR]
            assert any(item.line in changed for item in errors), [str(item) for item in errors]
        return
    # What is reported for other lines has no cause in them.
    assert all(item.line in (0, *changed) for item in found)
    assert differences(before, load(path, check_host=False)) <= {key_of(LINES[number])}


def key_of(line: str) -> str:
    """The key that a line sets, or "" for a table's name."""
    return line.partition(" = ")[0] if "=" in line else ""


def differences(one: Configuration, other: Configuration) -> set[str]:
    """The keys whose values differ."""
    return {
        name
        for part in ("hypervisor", "agent", "runtime")
        for name in type(getattr(one, part)).model_fields
        if getattr(getattr(one, part), name) != getattr(getattr(other, part), name)
    }


relaxed = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)


@relaxed
@given(character_changes())
@example((10, 'virtio_fs_extra_args = ["--log-level", "info"'))
@example((0, "[hypervisor.qemu"))
@example((12, "agent.kata]"))
@example((12, "#agent.kata]"))
@example((7, "default_vcpus = [2"))
@example((5, "kernel_params = quiet"))
@example((5, "kernel_params = 'quiet"))
@example((17, 'log_level = "debug'))
@example((17, '#log_level = "debug"'))
@example((9, "seccompsandbox# = off"))
def test_a_character_that_changes(write: Write, change: Change) -> None:
    check(write, change)


@relaxed
@given(token_changes())
@example((9, 'seccompsandbox = ""'))
@example((8, 'default_memory = 1024 "'))
@example((8, "default_memory = 1024\ndefault_memory = 1024"))
@example((16, "hypervisor_name = off"))
def test_a_token_that_changes(write: Write, change: Change) -> None:
    check(write, change)


def test_every_value_differs(write: Write) -> None:
    """What these tests rest on: a line that is taken away changes its key, and no other."""
    path = write("\n".join(LINES) + "\n")
    before = load(path, check_host=False)
    defaults = {"path", "hypervisor_name", "seccompsandbox"}
    for number, line in enumerate(LINES):
        key = key_of(line)
        if key and key not in ("kernel", *defaults):
            path = write("\n".join(LINES[:number] + LINES[number + 1 :]) + "\n")
            assert differences(before, load(path, check_host=False)) == {key}
