"""A command of kata-ctl that cannot do what was asked says so in a sentence, with a status of its own."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime import direct_volumes
from kata_runtime.ctl import main as front_door
from kata_runtime.ctl import version
from kata_runtime.ctl.running import RecordedSandbox, only
from kata_runtime.identity import STATE_ROOT

LOST = "{lost}"
"""A path that nothing can be read from or written to, whoever tries: one below a regular file."""

UNUSABLE: dict[str, tuple[str, ...]] = {
    "config lint": (LOST,),
    "config show": (LOST,),
    "config diff": (LOST, LOST),
    "config test": ("--pod", LOST),
    "config migrate": ("--from", "runtime-go", LOST),
    "config explain-annotation": ("default_memory", "--pod", LOST),
    "image build": ("--sources", f"{LOST}.list", "--output", LOST, "--cache", LOST),
    "factory init": ("--config", LOST),
    "factory status": ("--config", LOST),
    "factory destroy": ("--config", LOST),
    "shim install": (LOST,),
    "containerd configure": ("--config", LOST, "--handler", "kata={file}"),
    "zygote install": (LOST,),
    "seccomp status": (),
    "seccomp show": ("--policy", LOST),
    "seccomp verify": ("--policy", LOST),
    "seccomp trace": ("--", LOST),
    "seccomp run": ("--profile", LOST, "--", "true"),
    "seccomp diff": (LOST,),
    "seccomp profile": (LOST,),
    "seccomp report": ("--output", LOST),
    "seccomp provoke": ("pod",),
    "network": (),
    "confinement": (),
    "direct-volume add": (
        "--volume-path",
        "/volume",
        "--mount-info",
        '{"volume-type": "block", "device": "/dev/sdf", "fstype": "ext4"}',
    ),
    "direct-volume remove": ("--volume-path", "/volume"),
    "log-level": ("pod",),
    "metrics": (),
    "cleanup": (),
}
"""Each command that reads or writes something of the host's, with arguments that it cannot use."""

NEEDS_NOTHING = {
    "config schema": "it prints what the models say",
    "config explain": "it prints what the models say",
    "config reference": "it prints what the models say",
    "env": "what cannot be read is its answer",
    "check": "what cannot be read is its answer",
    "zygote status": "that there is none is its answer",
    "zygote start": "it starts one: tests/integration has it",
    "zygote stop": "that there is none is its answer",
    "seccomp score": "it prints what the shipped policies come to",
    "version": "it prints a constant",
}


def leaves(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """The commands below a parser, in words."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name
    for action in below:
        for word, child in action.choices.items():
            yield from leaves(child, f"{name} {word}")


def commands() -> Iterator[str]:
    for name, command in front_door.COMMANDS.items():
        subparsers = argparse.ArgumentParser().add_subparsers()
        importlib.import_module(command.module).add_parser(subparsers)
        yield from leaves(subparsers.choices[name], name)


def test_every_command_is_here() -> None:
    assert sorted(commands()) == sorted([*UNUSABLE, *NEEDS_NOTHING])


def test_the_front_door_and_the_command_have_one_summary() -> None:
    for name, command in front_door.COMMANDS.items():
        parser = argparse.ArgumentParser(prog="kata-ctl")
        subparsers = parser.add_subparsers()
        importlib.import_module(command.module).add_parser(subparsers)
        (listed,) = subparsers._choices_actions
        assert (listed.dest, listed.help) == (name, command.summary)


@pytest.mark.parametrize("command", UNUSABLE)
def test_what_cannot_be_used_is_a_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    places = {"lost": str(file / "below"), "file": str(file)}
    monkeypatch.setattr(direct_volumes, "ROOT", places["lost"])
    real = os.listdir

    def listdir(path: str = ".") -> list[str]:
        if path == STATE_ROOT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    words = (word if word.startswith('{"') else word.format(**places) for word in UNUSABLE[command])
    status = front_door.main([*command.split(), *words])
    said = capfd.readouterr().err
    assert status in (1, 2)
    assert said.strip()
    assert "[Errno" not in said
    assert not any(line.startswith("Traceback") for line in said.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("containerd configure --remove --handler kata=/x", "leave out --handler"),
        (
            "seccomp diff trace.json policy.toml --driver qemu",
            "of the shipped policy: leave them out",
        ),
        ("seccomp diff trace.json policy.toml --kind vcpu", "of the shipped policy: leave them out"),
    ],
)
def test_an_option_without_effect_beside_another_is_refused(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front_door.main(words.split()) == front_door.COULD_NOT_RUN
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "user", "said"),
    [
        (PermissionError(errno.EACCES, "Denied", "/x"), 1000, "/x: denied (run kata-ctl as root)"),
        (PermissionError(errno.EACCES, "Denied", b"/x"), 0, "/x: denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1000, "no space left on device"),
        (OSError("no number"), 0, "no number"),
    ],
)
def test_what_the_system_refuses(
    error: OSError,
    user: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(version, "_version", run)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert front_door.main(["version"]) == front_door.COULD_NOT_RUN
    assert capsys.readouterr().err == f"kata-ctl: {said}\n"


def test_a_prefix_of_several_sandboxes_is_of_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = [RecordedSandbox(name, "default", "/nowhere", "/nowhere", ()) for name in ("web-1", "web-2")]
    monkeypatch.setattr("kata_runtime.ctl.running.running_sandboxes", lambda: iter(pods))
    assert only("web-1") is pods[0]
    assert front_door.main(["log-level", "web"]) == front_door.COULD_NOT_RUN
    said = "kata-ctl: several running sandboxes have an id that starts with 'web': web-1, web-2\n"
    assert capsys.readouterr().err == said


def test_the_version_is_said_as_other_programs_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door.main(["version"]) == 0
    said = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        front_door.main(["--version"])
    assert capsys.readouterr().out == said
