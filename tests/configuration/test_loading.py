"""Loading: what comes out, what it costs, and that it agrees with linting."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kata_configuration import ConfigurationError, Severity, lint, load
from kata_configuration.models import QemuHypervisor
from kata_configuration.sandbox_option import DENY_ALL
from tables import qemu_of

Write = Callable[..., Path]

FULL = """\
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
[agent.kata]
dial_timeout_ms = 20
kernel_modules = ["fuse"]
[runtime]
hypervisor_name = "qemu"
log_level = "debug"
"""


def test_a_file_is_loaded(write: Write) -> None:
    path = write(FULL)
    configuration = load(path, check_host=False, source="default")
    assert configuration.path == path
    assert configuration.sha256 == hashlib.sha256(FULL.encode()).hexdigest()
    assert str(configuration) == f"configuration {path} (sha256 {configuration.sha256}, chosen by default)"
    assert configuration.warnings == ()
    qemu = qemu_of(configuration)
    assert (qemu.kernel, qemu.initrd) == (Path("/boot/vmlinuz"), Path("/boot/initrd.img"))
    assert qemu.kernel_parameters == ("quiet", 'foo="a b"')
    assert qemu.cpu_features == "pmu=off,vmx=off"
    assert qemu.virtio_fs_extra_args == ("--log-level", "info")
    assert configuration.agent.kernel_modules == ("fuse",)
    assert configuration.runtime.log_level == "debug"


def test_what_is_loaded_cannot_change(write: Write, valid_text: str) -> None:
    configuration = load(write(valid_text), check_host=False)
    with pytest.raises(ValidationError, match="frozen"):
        qemu_of(configuration).seccompsandbox = "off"


def test_a_key_that_is_absent_never_means_unconfined(write: Write, valid_text: str) -> None:
    qemu = qemu_of(load(write(valid_text), check_host=False))
    assert qemu.seccompsandbox == DENY_ALL
    assert qemu.confined


@pytest.mark.parametrize(("value", "confined"), [("", False), ("off", False), ("on", True), (DENY_ALL, True)])
@pytest.mark.parametrize("key", ["seccompsandbox", "seccomp_sandbox"])
def test_both_spellings_confine(write: Write, valid_text: str, key: str, value: str, confined: bool) -> None:
    configuration = load(write(f'{valid_text}{key} = "{value}"\n'), check_host=False)
    assert qemu_of(configuration).seccompsandbox == value
    assert configuration.hypervisor.confined == confined
    assert (
        any(warning.code == "KATA502" and warning.security for warning in configuration.warnings) != confined
    )


def test_the_first_line_of_the_error_says_all(write: Write, valid_text: str) -> None:
    path = write(f'{valid_text}secompsandbox = "on"\ndefault_vcpus = 0\ndisable_guest_seccomp = true\n')
    with pytest.raises(ConfigurationError) as caught:
        load(path, check_host=False)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        f"{path}:4:1: error[KATA201] hypervisor.qemu.secompsandbox: unknown key "
        '(did you mean "seccompsandbox"?)'
    )


def test_paths_are_checked_on_the_host(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kata_configuration.judge.host.KVM", tmp_path / "kvm")
    monkeypatch.setattr("kata_configuration.judge.host.VIRTIOFSD_PLACES", (Path(sys.executable),))
    plain = tmp_path / "plain"
    plain.touch()
    path = write(
        f'[hypervisor.qemu]\npath = "{plain}"\nkernel = "{tmp_path}/absent"\ninitrd = "{plain}"\n'
        f'image = "{tmp_path}"\n'
        f'virtio_fs_daemon = "{plain}/x"\nentropy_source = "{tmp_path}/none"\n'
    )
    findings = [str(diagnostic).removeprefix(f"{path}:") for diagnostic in lint(path)]
    assert findings == [
        "1:13: error[KATA603] hypervisor.qemu.accelerator: this host has no "
        f"{tmp_path}/kvm (load the module kvm_intel or kvm_amd, or accept slow emulation with "
        'accelerator = "tcg")',
        f"2:8: error[KATA602] hypervisor.qemu.path: {plain} is not executable (chmod +x {plain})",
        f"3:10: error[KATA601] hypervisor.qemu.kernel: {tmp_path}/absent does not exist "
        "(correct the path or install the file)",
        f"5:9: error[KATA601] hypervisor.qemu.image: {tmp_path} is not a regular file "
        "(correct the path or install the file)",
        f"6:20: error[KATA601] hypervisor.qemu.virtio_fs_daemon: {plain}/x is unusable: not a directory "
        f"(this host has {sys.executable})",
        f"7:18: error[KATA601] hypervisor.qemu.entropy_source: {tmp_path}/none does not exist "
        "(use /dev/urandom)",
    ]


def test_without_virtio_fs_its_daemon_may_be_absent(write: Write, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"\x7fELF")
    plain.chmod(0o755)
    path = write(
        f'[hypervisor.qemu]\npath = "{plain}"\nkernel = "{plain}"\nimage = "{plain}"\naccelerator = "tcg"\n'
        'shared_fs = "none"\nvirtio_fs_daemon = "/absent"\n'
    )
    assert [found.code for found in lint(path)] == ["KATA404"]


def test_a_host_that_is_too_small_is_a_warning(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    path = write(
        '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\ndefault_vcpus = 3\ndefault_memory = 16777216\n'
    )
    findings = {diagnostic.key: diagnostic for diagnostic in lint(path) if diagnostic.code == "KATA604"}
    assert (
        findings["hypervisor.qemu.default_vcpus"].message
        == "3 is more than the 2 CPUs of this host, and becomes 2"
    )
    assert findings["hypervisor.qemu.default_memory"].severity is Severity.WARNING


lines = st.sampled_from(FULL.splitlines())
snippets = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'''",
        "=",
        "#",
        "\n",
        ",",
        "true",
        "é",
        "\t",
        "\0",
        "1e9",
        "[[x]]\n",
        "\\",
    ]
) | st.text(max_size=3)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid file in which something was cut out, put in, repeated, or moved."""
    text = FULL
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(start + draw(st.sampled_from([0, 0, 1, 2, 10, 40])), len(text))
        text = text[:start] + draw(snippets | lines) + text[end:]
    return text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(damaged())
def test_what_lints_clean_loads_and_nothing_else_does(write: Write, text: str) -> None:
    path = write(text.encode("utf-8", "surrogatepass"))
    diagnostics = lint(path, check_host=False)
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity is Severity.ERROR]
    if errors:
        with pytest.raises(ConfigurationError) as caught:
            load(path, check_host=False)
        assert caught.value.diagnostics == diagnostics
        assert len(str(caught.value).split("\n")) == len(errors)
    else:
        assert isinstance(load(path, check_host=False).hypervisor, QemuHypervisor)
    count = text.count("\n") + 1
    assert all(0 <= diagnostic.line <= count for diagnostic in diagnostics)


def imported(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has imported after running the code."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_is_cheap() -> None:
    modules = imported("import kata_configuration")
    assert "kata_configuration" in modules
    assert {"pydantic", "tomli", "tree_sitter", "dataclasses", "pathlib"}.isdisjoint(modules)


def test_loading_a_clean_file_needs_no_linter(write: Write) -> None:
    path = write(FULL)
    modules = imported(
        f"import pathlib, kata_configuration as k\nk.load(pathlib.Path({str(path)!r}), check_host=False)"
    )
    assert "pydantic" in modules
    assert {"tree_sitter", "tree_sitter_toml", "difflib", "asyncio", "argparse"}.isdisjoint(modules)
