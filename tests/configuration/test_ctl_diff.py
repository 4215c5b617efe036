"""kata-ctl config diff: what differs in effect, with what concerns confinement first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import load
from kata_configuration.tell import comparing
from kata_runtime.ctl.main import main

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def test_a_file_does_not_differ_from_itself(write: Write, valid_text: str, capsys: Capture) -> None:
    path = write(valid_text)
    assert main(["config", "diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_default_that_is_written_out_is_no_difference(
    tmp_path: Path, valid_text: str, capsys: Capture
) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(valid_text)
    other.write_text(valid_text + "default_vcpus = 1\n")
    assert main(["config", "diff", str(one), str(other)]) == 0
    assert capsys.readouterr().out == ""


def test_what_concerns_confinement_comes_first(tmp_path: Path, valid_text: str, capsys: Capture) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(valid_text)
    other.write_text(valid_text + 'default_vcpus = 3\nseccompsandbox = ""\n')
    assert main(["config", "diff", str(one), str(other)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    line = len(other.read_text().splitlines())
    assert first.startswith("security  hypervisor.qemu.seccompsandbox: ")
    assert first.endswith(f' (default) -> "" ({other}:{line})')
    assert second == f"          hypervisor.qemu.default_vcpus: 1 (default) -> 3 ({other}:{line - 1})"


def test_a_drop_in_counts_as_its_file(write: Write, valid_text: str, tmp_path: Path, capsys: Capture) -> None:
    plain = tmp_path / "plain.toml"
    plain.write_text(valid_text)
    path = write(valid_text)
    (path.parent / "config.d").mkdir(exist_ok=True)
    (path.parent / "config.d" / "10.toml").write_text('[runtime]\nshim_seccomp = "off"\n')
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "plain.toml").write_text(valid_text)
    assert main(["config", "diff", "--json", str(other / "plain.toml"), str(path)]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["key"], found["security"]) == ("runtime.shim_seccomp", True)
    assert found["before"] == {"value": "enforce", "origin": "default"}
    assert found["after"]["origin"].endswith("config.d/10.toml:2")


def test_another_hypervisor_takes_the_firsts_place(write: Write, valid_text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[hypervisor.clh]\nkernel = "/k"\nimage = "/i"\n[runtime]\nhypervisor_name = "clh"\n')
    before, after = load(write(valid_text), check_host=False), load(other, check_host=False)
    found = {difference.key: difference for difference in comparing.differences(before, after)}
    assert found["hypervisor.qemu.seccompsandbox"].after is None
    assert found["hypervisor.qemu.path -> hypervisor.clh.path"].security
    assert not any("default_memory" in key for key in found)


def test_faults_are_told(write: Write, valid_text: str, capsys: Capture) -> None:
    path = write(valid_text + "nonsense = 1\n")
    assert main(["config", "diff", str(path), str(path)]) == 2
    assert "KATA201" in capsys.readouterr().err
