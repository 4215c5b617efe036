"""`kata-ctl containerd configure`: what is there stays, twice is once, and it undoes itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

import containerd_versions
from kata_runtime.ctl.containerd_config import ContainerdConfigError, add, remove
from kata_runtime.ctl.main import main

ONE = {"kata": Path("/etc/kata-containers/configuration.toml")}
TWO = {**ONE, "kata-clh": Path("/etc/kata-containers/configuration-clh.toml")}

DEBIAN = """\
version = 2

# Ours, do not touch.
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni" # Debian's
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
NEWER = """\
version = 3
root = '/var/lib/containerd'

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
"""
SOME = ["", "version = 2\n", "# nothing yet\n", DEBIAN, NEWER, NEWER.replace("3", "4", 1), DEBIAN.rstrip()]


@pytest.mark.parametrize("text", SOME)
def test_what_is_there_stays_and_comes_back(text: str) -> None:
    once = add(text, ONE)
    assert once.startswith(text)
    assert add(once, ONE) == once
    assert remove(once).rstrip("\n") == text.rstrip("\n")
    both = add(once, TWO)
    assert add(both, ONE) == once
    assert both.count(">>> kata-ctl") == 1
    if text.endswith("\n") or not text:
        assert remove(both) == text


@pytest.mark.parametrize(
    ("text", "plugin"),
    [("", "io.containerd.grpc.v1.cri"), (DEBIAN, "io.containerd.grpc.v1.cri")]
    + [(text, "io.containerd.cri.v1.runtime") for text in SOME[4:6]],
)
def test_the_handlers_are_where_that_version_looks(text: str, plugin: str) -> None:
    read = tomli.loads(add(text, TWO))
    runtimes = read["plugins"][plugin]["containerd"]["runtimes"]
    assert {name: one["options"]["ConfigPath"] for name, one in runtimes.items() if name != "runc"} == {
        name: str(path) for name, path in TWO.items()
    }
    assert runtimes["kata"]["runtime_type"] == "io.containerd.kata.v2"
    assert runtimes["kata"]["privileged_without_host_devices"] is True


@given(st.lists(st.sampled_from(["# a\n", "\n", 'root = "x"\n', "[grpc]\n", "  uid = 1\n"]), unique=True))
def test_any_file_that_reads_comes_back(lines: list[str]) -> None:
    text = "version = 2\n" + "".join(lines)
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert remove(add(text, ONE)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = ", "it is not TOML"),
        ('root = "/x"\n', "it is of version 1"),
        ("version = 5\n", "it is of version 5"),
        ('version = "2"\n', "it is of version 2, and handlers"),
        ('version = 2\ndisabled_plugins = ["cri"]\n', "without which containerd serves no kubelet"),
        (f'version = 3\ndisabled_plugins = ["{"io.containerd.cri.v1.runtime"}"]\n', "serves no kubelet"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\na = "x"\n',
            "a runtime kata that this command did not write",
        ),
        ('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {}}\n', "in braces"),
    ],
)
def test_what_cannot_be_extended_is_told(text: str, said: str) -> None:
    with pytest.raises(ContainerdConfigError, match=said):
        add(text, ONE)


@pytest.mark.parametrize("name", ["", "Kata", "a b", "kata]", "-a", 'a"'])
def test_a_name_that_no_runtime_class_may_have_is_refused(name: str) -> None:
    with pytest.raises(ContainerdConfigError, match="cannot be a handler"):
        add("", {name: Path("/x")})


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def handler(tmp_path: Path) -> str:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text("")
    return f"kata={configuration}"


def configure(path: Path, *arguments: str) -> int:
    return main(["containerd", "configure", "--config", str(path), *arguments])


def test_a_file_is_made_changed_and_unmade(
    tmp_path: Path, handler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "etc/config.toml"
    assert configure(path, "--handler", handler) == 0
    assert "restart containerd" in capsys.readouterr().out
    first = path.read_text()
    assert configure(path, "--handler", handler) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert path.read_text() == first
    assert configure(path, "--remove") == 0
    assert not path.exists()
    assert configure(path, "--remove") == 0


def test_the_files_mode_and_link_stay(tmp_path: Path, handler: str) -> None:
    real, path = tmp_path / "real.toml", tmp_path / "config.toml"
    real.write_text(DEBIAN)
    real.chmod(0o600)
    path.symlink_to(real)
    assert configure(path, "--handler", handler) == 0
    assert path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert configure(path, "--remove") == 0
    assert real.read_text() == DEBIAN
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "config.toml",
        "configuration.toml",
        "real.toml",
    ]


def test_nobody_else_reads_it_while_it_is_written(tmp_path: Path, handler: str) -> None:
    """It may have a registry's password in it, and then its mode is 0600: at no moment anything else."""
    path = tmp_path / "config.toml"
    path.write_text(DEBIAN)
    path.chmod(0o600)
    seen: list[tuple[str, int]] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("os.chmod", "os.chown", "os.rename"):
            beside = (entry for entry in os.scandir(tmp_path) if entry.name.startswith(".config.toml"))
            seen.extend((event, entry.stat().st_mode & 0o777) for entry in beside)

    sys.addaudithook(watch)  # for good: a hook cannot be taken away
    try:
        assert configure(path, "--handler", handler) == 0
    finally:
        watching = False
    assert "os.rename" in dict(seen)
    assert {mode for _, mode in seen} == {0o600}


def test_a_dry_run_shows_and_writes_nothing(
    tmp_path: Path, handler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(DEBIAN)
    assert configure(path, "--handler", handler, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert '+  runtime_type = "io.containerd.kata.v2"' in shown
    assert path.read_text() == DEBIAN


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("kata", "must be NAME=CONFIGURATION"),
        ("kata=x", "must be"),
        ("kata=/no/such", "no such configuration"),
    ],
)
def test_a_handler_without_a_configuration_is_refused(
    tmp_path: Path, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert configure(tmp_path / "config.toml", "--handler", given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "config.toml").exists()


def test_a_file_that_takes_its_place_is_named(
    tmp_path: Path, handler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "config.toml", tmp_path / "conf.d/cri.toml"
    other.parent.mkdir()
    path.write_text('version = 2\nimports = ["conf.d/*.toml"]\n')
    other.write_text("version = 2\n[grpc]\n  uid = 0\n")
    assert configure(path, "--handler", handler) == 0
    other.write_text(DEBIAN)
    assert configure(path, "--handler", handler) == 2
    assert f"--config {other}" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize("version", [containerd_versions.SYSTEM, containerd_versions.SECOND])
@pytest.mark.parametrize("text", ["", DEBIAN, NEWER])
def test_containerd_reads_what_was_written(tmp_path: Path, handler: str, version: str, text: str) -> None:
    try:
        programs = containerd_versions.find(version)
    except containerd_versions.NotAvailableError as error:
        pytest.skip(str(error))
    if text == NEWER and programs.version < (2, 0):
        pytest.skip("this containerd knows no version 3")
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert configure(path, "--handler", handler) == 0
    argv = [str(programs.containerd), "--config", str(path), "config", "dump"]
    dumped = tomli.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    plugin = "io.containerd.cri.v1.runtime" if programs.version >= (2, 0) else "io.containerd.grpc.v1.cri"
    runtimes = dumped["plugins"][plugin]["containerd"]["runtimes"]
    assert runtimes["kata"]["options"] == {"ConfigPath": handler.partition("=")[2]}
    assert runtimes["kata"]["pod_annotations"] == ["io.katacontainers.*"]
