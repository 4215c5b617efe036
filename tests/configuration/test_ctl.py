"""kata-ctl: the front door, and its command config."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration.tell.template import SHIPPED
from kata_runtime.ctl.main import COMMANDS, Command, main

Write = Callable[..., Path]


def test_the_shipped_file_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "lint", "--no-host", "--strict", str(SHIPPED / "configuration-qemu.toml")]) == 0
    assert capsys.readouterr() == ("", "1 file, 0 errors, 0 warnings, 0 notes\n")


def test_faults_are_shown_in_their_lines(
    write: Write, valid_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(valid_text + 'secompsandbox = "on"\n')
    assert main(["config", "lint", "--no-host", str(path), str(path)]) == 1
    assert capsys.readouterr() == (
        f"{path}:4:1: error[KATA201] hypervisor.qemu.secompsandbox: unknown key "
        '(did you mean "seccompsandbox"?)\n'
        '    4 | secompsandbox = "on"\n'
        "      | ^^^^^^^^^^^^^\n",
        "1 file, 1 error, 0 warnings, 0 notes\n",
    )


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_warnings_fail_when_told_to(write: Write, valid_text: str, options: list[str], status: int) -> None:
    path = write(valid_text + 'seccompsandbox = ""\n')
    assert main(["config", "lint", "--no-host", *options, str(path)]) == status


def test_a_file_that_cannot_be_read(write: Write, valid_text: str) -> None:
    assert main(["config", "lint", "--no-host", str(write(valid_text + "x = 1\n")), "/absent.toml"]) == 2


def test_the_file_in_force_is_the_default(
    write: Write, valid_text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KATA_CONF_FILE", "/absent.toml")
    assert main(["config", "lint"]) == 2
    assert capsys.readouterr().err.startswith("/absent.toml: error[KATA002]")


def test_a_command_that_cannot_be_loaded_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "image", Command("kata_runtime.ctl.absent", "be absent"))
    assert main(["image", "build"]) == 2
    assert capsys.readouterr().err == (
        "kata-ctl: the command image cannot be loaded: No module named 'kata_runtime.ctl.absent'\n"
    )


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["confug"])
    assert caught.value.code == 2
    assert "invalid choice: 'confug'" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("kata-ctl ")


HELP = """
import sys
from kata_runtime.ctl.main import main
try:
    main(["--help"])
except SystemExit:
    print(*[name for name in sys.modules if name.startswith(("kata_", "pydantic"))], file=sys.stderr)
"""


def test_help_imports_no_command() -> None:
    wide = {**os.environ, "COLUMNS": "200"}
    run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, env=wide)
    modules = ["kata_runtime", "kata_runtime.ctl", "kata_runtime.ctl.errors", "kata_runtime.version"]
    assert run.stderr.split() == [*modules, "kata_runtime.ctl.main"]
    assert all(command.summary in run.stdout for command in COMMANDS.values())


def test_a_reader_that_has_enough_ends_it_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kata_runtime.ctl.main", "config", "schema"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (2, b"")
