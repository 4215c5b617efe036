"""kata-ctl config lint: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration.tell.template import SHIPPED
from kata_hypervisor.kvm.probe import KvmProbeResult
from kata_runtime.ctl.config_lint import expand
from kata_runtime.ctl.main import main

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    """Lint without looking at this host."""
    return main(["config", "lint", "--no-host", *map(str, arguments)])


@pytest.fixture
def tree(tmp_path: Path, valid_text: str) -> Path:
    """A directory of two configurations with a drop-in of both, and other files."""
    (tmp_path / "config.d").mkdir()
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(valid_text)
    (tmp_path / ".hidden.toml").write_text("[")
    (tmp_path / "notes.txt").write_text("[")
    (tmp_path / "config.d" / "10.toml").write_text("[runtime]\nx = 1\n")
    return tmp_path


def test_a_directory_means_its_files(tree: Path, capsys: Capture) -> None:
    assert run(tree) == 1
    output = capsys.readouterr()
    assert output.out.count("KATA201") == 1
    assert output.out.startswith(f"{tree}/config.d/10.toml:2:1: error[KATA201] runtime.x")
    assert output.err == "2 files, 1 error, 0 warnings, 0 notes\n"


def test_a_drop_in_means_the_files_that_it_belongs_to(tree: Path) -> None:
    assert expand([tree / "config.d" / "10.toml"]) == [tree / "a.toml", tree / "b.toml"]
    assert expand([tree / "b.toml", tree]) == [tree / "b.toml", tree / "a.toml"]
    (tree / "configuration.toml").touch()
    assert expand([tree / "config.d" / "10.toml"]) == [tree / "configuration.toml"]


def test_a_directory_without_files_is_an_error(tree: Path, capsys: Capture) -> None:
    (tree / "empty").mkdir()
    assert run(tree / "empty") == 2
    assert capsys.readouterr().err == f"{tree}/empty: no *.toml file in this directory\n"


def test_json(tree: Path, capsys: Capture) -> None:
    assert run("--format", "json", tree / "a.toml") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == [f"{tree}/a.toml"]
    assert [found["code"] for found in report["diagnostics"]] == ["KATA201"]


def test_sarif(tree: Path, capsys: Capture) -> None:
    assert run("--format", "sarif", tree) == 1
    log = json.loads(capsys.readouterr().out)
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["KATA201"]


def test_github(tree: Path, capsys: Capture) -> None:
    assert run("--format", "github", tree) == 1
    place = f"{tree}/config.d/10.toml"
    expected = (
        f"::error file={place},line=2,col=1,endLine=2,endColumn=2,title=KATA201::runtime.x: unknown key"
    )
    assert capsys.readouterr().out.startswith(expected)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal, {}, True),
        (io.StringIO, {}, False),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    environment: dict[str, str],
    coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output = stream()
    monkeypatch.setattr(sys, "stdout", output)
    run(tree)
    assert ("\x1b[" in output.getvalue()) == coloured


def test_fix_mends_the_file_and_shows_how(write: Write, valid_text: str, capsys: Capture) -> None:
    path = write(valid_text + 'secompsandbox = "on,spawn=deny"\n')
    assert run("--fix", path) == 0
    assert path.read_text() == valid_text + 'seccompsandbox = "on,spawn=deny"\n'
    output = capsys.readouterr().out
    assert '-secompsandbox = "on,spawn=deny"\n+seccompsandbox = "on,spawn=deny"\n' in output


def test_fix_keeps_a_report_of_tools_clean(write: Write, valid_text: str, capsys: Capture) -> None:
    path = write(valid_text + 'secompsandbox = "on"\n')
    assert run("--fix", "--format", "json", path) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["summary"]["error"] == 0
    assert "+seccompsandbox" in output.err


def test_a_file_that_cannot_be_written_is_reported(
    write: Write, valid_text: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = write(valid_text + 'secompsandbox = "on"\n')

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert run("--fix", path) == 2
    assert f"{path}: cannot be fixed: Permission denied" in capsys.readouterr().err


def test_what_we_ship_is_clean(capsys: Capture) -> None:
    assert run("--strict", SHIPPED / "configuration-qemu.toml") == 0
    assert capsys.readouterr().out == ""


def test_the_hook_runs_the_linter() -> None:
    hooks = (Path(__file__).parents[2] / ".pre-commit-hooks.yaml").read_text()
    assert "entry: kata-ctl config lint --no-host" in hooks
    assert "id: kata-configuration" in hooks


@pytest.mark.parametrize(
    ("name", "lines", "key"),
    [
        ("qemu", 'accelerator = "kvm"', "accelerator"),
        ("firecracker", "", "path"),
        ("dragonball", "", "kernel"),
        ("qemu", 'accelerator = "tcg"', None),
        ("solo5-hvt", "", None),
    ],
)
def test_a_kvm_that_runs_no_unmodified_guests_is_a_warning(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str, lines: str, key: str | None
) -> None:
    monkeypatch.setattr(
        "kata_runtime.ctl.kvm_rule._probe", lambda: KvmProbeResult(True, False, "this KVM only emulates")
    )
    monkeypatch.setattr("kata_configuration.judge.host.KVM", Path("/dev/null"))
    kernel = "" if name.startswith("solo5") else 'kernel = "/k"\nimage = "/i"\n'
    path = write(f'[hypervisor.{name}]\n{kernel}{lines}\n[runtime]\nhypervisor_name = "{name}"\n')
    main(["config", "lint", str(path)])
    found = [line for line in capsys.readouterr().out.splitlines() if "KATA609" in line]
    if key is None:
        assert found == []
        return
    (line,) = found
    assert f"warning[KATA609] hypervisor.{name}.{key}: this host's KVM runs no unmodified guests: " in line
    assert 'accelerator = "tcg" in [hypervisor.qemu] to emulate (slow)' in line


def test_a_kvm_that_runs_guests_or_is_not_to_be_asked_is_no_warning(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, valid_text: str
) -> None:
    results = [KvmProbeResult(True, True, ""), KvmProbeResult(False, False, "there is none")]
    monkeypatch.setattr("kata_runtime.ctl.kvm_rule._probe", lambda: results.pop())
    path = write(valid_text)
    for _ in range(2):
        main(["config", "lint", str(path)])
    assert results == []
    run(path)  # without looking at the host: a probe would fail here
    assert "KATA609" not in capsys.readouterr().out
