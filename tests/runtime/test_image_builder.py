"""The output is replaced whole or not at all, by one build at a time; errors say what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.image import builder, distribution, manifest
from kata_runtime.image.agent import Agent
from kata_runtime.image.agent_program import AgentProgram
from kata_runtime.image.apt import Apt, Package
from kata_runtime.image.build_directory import build_directory, locked, publish
from kata_runtime.image.errors import OutputError
from kata_runtime.image.manifest import Artifact, Manifest
from kata_runtime.image.sbom import Archive


def never() -> None:
    raise AssertionError("nobody else holds the lock")


def test_publishing_replaces_the_whole_directory(tmp_path: Path) -> None:
    output = tmp_path / "image"
    for number in (1, 2):
        with build_directory(output, never) as scratch:
            (scratch / "new").mkdir()
            (scratch / f"new/file{number}").write_text("x")
            publish(scratch / "new", output)
        assert [path.name for path in output.iterdir()] == [f"file{number}"]
    assert list(tmp_path.iterdir()) == [output]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".image.build/new/deep"
    left.mkdir(parents=True)
    (left / "half").touch()
    with build_directory(tmp_path / "image", never) as scratch:
        assert list(scratch.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock of tmp_path until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from kata_runtime.image.build_directory import locked\n"
        "with locked(Path(sys.argv[1]), lambda: None): print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_build_waits_and_a_killed_one_lets_go(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    reported: list[str] = []

    def waiting() -> None:
        reported.append("waiting")
        holder.kill()

    with locked(tmp_path, waiting):
        assert reported == ["waiting"]


DEBIAN = Archive("debian", "bookworm")
PACKAGE = Package("crun", "1.8", "crun_1.8_amd64.deb", 4, "ab" * 32)


def make_manifest(directory: Path) -> Manifest:
    (directory / "vmlinuz").write_bytes(b"kernel")
    artifacts = {"vmlinuz": Artifact.of(directory / "vmlinuz")}
    made = Manifest("cafe", "bookworm", "6.1.0", "2026-11-30", "ours", "root_hash=ab", [PACKAGE], artifacts)
    made.write(directory)
    return made


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = make_manifest(tmp_path)
    assert manifest.read(tmp_path) == made
    assert made.intact(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"kernal")
    assert not made.intact(tmp_path)
    (tmp_path / "vmlinuz").unlink()
    assert not made.intact(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 4, "packages": 3}', '{"format": 3}']
)
def test_a_manifest_that_is_not_ours_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert manifest.read(tmp_path) is None


class Silent:
    def step(self, title: str) -> None:
        pass

    def advance(self, fraction: float) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left for .*: .* MB are free, a build takes about 500"),
        (errno.EACCES, "cannot write .*: Permission denied: run as root, or choose --output and --cache"),
        (errno.EROFS, "cannot write .*: Read-only file system: run as root"),
        (errno.EIO, "cannot build the image: .*: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "image"))

    monkeypatch.setattr(builder, "locked", refuse)
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    monkeypatch.setattr(distribution.detect, "__defaults__", (tmp_path / "os-release", "x86_64"))
    request = builder.Build(tmp_path / "image", tmp_path / "cache", agent=Agent(tmp_path, tmp_path))
    with pytest.raises(OutputError, match=message):
        builder.build(request, Silent())


@pytest.mark.parametrize("name", ["cache", "."])
def test_a_cache_that_others_may_change_is_refused(tmp_path: Path, name: str) -> None:
    """Attack: a local user has made it, with a plan that names packages of his own by their hashes."""
    (tmp_path / "cache").mkdir()
    (tmp_path / name).chmod(0o777)
    request = builder.Build(tmp_path / "image", tmp_path / "cache", agent=Agent(tmp_path, tmp_path))
    with pytest.raises(
        OutputError, match=r"cannot use the cache .* has the mode 0777, which lets others put files"
    ):
        builder.build(request, Silent())


def test_a_plan_is_remembered_until_its_question_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "sources.list").write_text("deb http://mirror bookworm main\n")
    apt = Apt(tmp_path / "cache", "bookworm", "bookworm", etc)
    kernel = Package("linux-image-6.1.0", "6.1", "linux-image-6.1.0_6.1_amd64.deb", 1, "cd" * 32)
    python = Package("python3-minimal", "3.11", "python3-minimal_3.11_amd64.deb", 1, "34" * 32)
    helper = Package("initramfs-tools", "1", "initramfs-tools_1_all.deb", 1, "ef" * 32)
    checker = Package("dmsetup", "2", "dmsetup_2_amd64.deb", 1, "12" * 32)
    answers = {
        "crun": [PACKAGE],
        "python3-minimal": [python],
        "busybox-static": [kernel, helper],
        "dmsetup": [checker],
    }
    monkeypatch.setattr(
        apt, "resolve", lambda names: next(found for name, found in answers.items() if name in names)
    )
    apt.directory.mkdir()
    plan = builder._new_plan(apt, "linux-image-cloud-amd64")
    assert plan.packages == [PACKAGE, checker, kernel, python]
    assert plan.fitting(Agent.installed()) == plan
    own = AgentProgram(tmp_path, b"", None)
    assert plan.fitting(own).packages == [PACKAGE, checker, kernel]
    assert builder._made_from(DEBIAN, plan.fitting(own), own)[builder.IMAGE] == [
        *DEBIAN.components([PACKAGE]),
        *own.components(),
    ]
    assert builder._known_plan(apt, "linux-image-cloud-amd64") == plan
    assert builder._known_plan(apt, "linux-image-other") is None
    (etc / "sources.list").write_text("deb http://mirror bookworm main contrib\n")
    assert builder._known_plan(apt, "linux-image-cloud-amd64") is None
    (apt.directory / builder.PLAN).write_text(json.dumps([]))
    assert builder._known_plan(apt, "linux-image-cloud-amd64") is None
    (apt.directory / builder.PLAN).write_bytes(b"{")
    assert builder._known_plan(apt, "linux-image-cloud-amd64") is None
