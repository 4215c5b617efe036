"""One character of a valid file is changed: the linter says nothing wrong, or points at the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kata_configuration import Severity, lint

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

# Without the sign that makes a line a comment: what is then missing has no line.
characters = st.sampled_from("abelnsxZ019\"'[]{}=,._-+ \t\\é\0\x1b") | st.characters(exclude_characters="#\n")


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, str]:
    """Return the number of a line, and the line with one character more, less, or another."""
    number = draw(st.integers(0, len(LINES) - 1))
    line = LINES[number]
    at = draw(st.integers(0, len(line) - 1))
    skipped = draw(st.integers(0, 1))
    put_in = draw(characters) if draw(st.booleans()) or not skipped else ""
    return number, line[:at] + put_in + line[at + skipped :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(changes())
@example((10, 'virtio_fs_extra_args = ["--log-level", "info"'))
@example((0, "[hypervisor.qemu"))
@example((12, "agent.kata]"))
@example((7, "default_vcpus = [2"))
@example((5, "kernel_params = quiet"))
@example((5, "kernel_params = 'quiet"))
@example((17, 'log_level = "debug'))
def test_a_fault_is_found_where_it_was_made(write: Write, change: tuple[int, str]) -> None:
    number, line = change
    text = "\n".join([*LINES[:number], line, *LINES[number + 1 :]]) + "\n"
    path = write(text.encode("utf-8", "surrogatepass"))
    found = lint(path, check_host=False)
    errors = [item for item in found if item.severity is Severity.ERROR]
    if errors:
        assert number + 1 in [item.line for item in errors], [str(item) for item in errors]
    # What was said of other lines than the changed one has a cause in it: nothing is wrong with them.
    if not errors:
        assert all(item.line in (0, number + 1) for item in found)
