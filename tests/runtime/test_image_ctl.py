"""kata-ctl image build: what is asked of the builder, what is printed, and the exit status."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kata_runtime.ctl import main as ctl
from kata_runtime.image import builder
from kata_runtime.image.agent import Agent
from kata_runtime.image.apt import Package
from kata_runtime.image.builder import Build, Outcome, Progress
from kata_runtime.image.errors import PackageError
from kata_runtime.image.manifest import Artifact, Manifest

HASHES = "root_hash=ab,salt=cd,data_blocks=1,data_block_size=4096,hash_block_size=4096"
ARTIFACTS = {"vmlinuz": Artifact(12_300_000, "ab" * 32)}
AGENT = "this project's, 0.1.0"
MANIFEST = Manifest("cafe", "trixie", "6.12.1-cloud-amd64", "2026-11-30", AGENT, HASHES, [], ARTIFACTS)


def test_the_arguments_reach_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Build] = []

    def build(request: Build, progress: Progress) -> Outcome:
        asked.append(request)
        progress.step("packages")
        progress.advance(1.0)
        return Outcome(MANIFEST, built=True)

    monkeypatch.setattr(builder, "build", build)
    places = ["--output", str(tmp_path / "o"), "--cache", str(tmp_path / "c")]
    assert ctl.main(["image", "build", *places, "--suite", "trixie", "--force"]) == 0
    (request,) = asked
    assert (request.output, request.cache) == (tmp_path / "o", tmp_path / "c")
    assert (request.suite, request.force) == ("trixie", True)
    assert request.agent == Agent.installed()
    printed = capsys.readouterr()
    assert printed.err == "image: packages\n"
    assert "kernel 6.12.1-cloud-amd64, 0 packages of trixie, the newest of 2026-11-30" in printed.out
    assert "  agent: this project's, 0.1.0\n" in printed.out
    assert "vmlinuz                  12.3 MB  sha256 abababababababab" in printed.out
    assert f'kernel_verity_params = "{HASHES}"' in printed.out


def test_another_distribution_has_its_own_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Build] = []

    def build(request: Build, progress: Progress) -> Outcome:
        asked.append(request)
        return Outcome(MANIFEST, built=False)

    monkeypatch.setattr(builder, "build", build)
    sources = ["--sources", str(tmp_path / "ubuntu.sources")]
    assert ctl.main(["image", "build", *sources]) == 0
    assert [(one.sources, one.suite) for one in asked] == [(tmp_path / "ubuntu.sources", None)]
    with pytest.raises(SystemExit):
        ctl.main(["image", "build", *sources, "--suite", "noble"])
    assert "argument --suite: not allowed with argument --sources" in capsys.readouterr().err


def test_an_image_that_is_up_to_date_is_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builder, "build", lambda request, progress: Outcome(MANIFEST, built=False))
    assert ctl.main(["image", "build"]) == 0
    assert capsys.readouterr().out.startswith("/var/lib/kata-containers/image: up to date (kernel 6.12.1")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PackageError("cannot resolve crun"), 1, "kata-ctl: cannot resolve crun\n"),
        (KeyboardInterrupt(), 130, "kata-ctl: interrupted: /var/lib/kata-containers/image is as it was\n"),
    ],
)
def test_a_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def build(request: Build, progress: Progress) -> Outcome:
        raise error

    monkeypatch.setattr(builder, "build", build)
    assert ctl.main(["image", "build"]) == status
    assert capsys.readouterr().err == message


def test_env_shows_what_the_guest_is_made_of_and_how_old_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builder, "DEFAULT_OUTPUT", tmp_path)
    monkeypatch.setenv("KATA_CONF_FILE", "/nowhere.toml")
    ctl.main(["env"])
    assert f"directory:      {tmp_path} has no manifest.json" in capsys.readouterr().out
    packages = [Package("crun", "1.8.1-1", "crun_1.8.1-1_amd64.deb", 4, "ab" * 32)]
    replace(MANIFEST, packages=packages).write(tmp_path)
    ctl.main(["env"])
    shown = capsys.readouterr().out
    assert "kernel:         6.12.1-cloud-amd64" in shown
    assert "agent:          this project's, 0.1.0" in shown
    assert "as of:          2026-11-30, when the newest of its packages was made" in shown
    assert "    crun 1.8.1-1\n" in shown
