"""Hooks of the guest itself: found by kind, in order, and added to what a container has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata_agent.guest import hooks
from kata_agent.guest.errors import InvalidRequestError


def program(path: Path, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(mode)


def test_programs_are_hooks_of_their_kind_in_order(tmp_path: Path) -> None:
    for name in ("prestart/20-b", "prestart/10-a", "poststop/end", "createRuntime/none", "README"):
        program(tmp_path / name)
    (tmp_path / "poststart").mkdir()
    assert hooks.find(str(tmp_path)) == {
        "prestart": [
            {"path": f"{tmp_path}/prestart/10-a", "args": ["10-a", "prestart"]},
            {"path": f"{tmp_path}/prestart/20-b", "args": ["20-b", "prestart"]},
        ],
        "poststop": [{"path": f"{tmp_path}/poststop/end", "args": ["end", "poststop"]}],
    }


def refusal(directory: Path) -> str:
    with pytest.raises(InvalidRequestError) as error:
        hooks.find(str(directory))
    return str(error.value)


@pytest.mark.parametrize("made", ["", "poststart", "README"])
def test_a_directory_without_hooks_is_refused(tmp_path: Path, made: str) -> None:
    if made:
        (tmp_path / "hooks" / made).mkdir(parents=True)
    assert f"the guest has no hooks in {tmp_path}/hooks: put programs into" in refusal(tmp_path / "hooks")


@pytest.mark.parametrize("kind", ["not executable", "link", "directory"])
def test_what_is_no_program_is_refused(tmp_path: Path, kind: str) -> None:
    program(tmp_path / "poststart/good")
    path = tmp_path / "poststart/other"
    if kind == "not executable":
        program(path, 0o644)
    elif kind == "link":
        path.symlink_to("good")
    else:
        path.mkdir()
    assert f"guest_hook_path: {path} is no program: make it a regular file" in refusal(tmp_path)


def test_a_file_in_a_directorys_place_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "prestart")
    assert f"cannot list {tmp_path}/prestart: Not a directory" in refusal(tmp_path)


def test_a_containers_own_come_first(tmp_path: Path) -> None:
    program(tmp_path / "poststart/more")
    found = hooks.find(str(tmp_path))
    own = {"path": "/own"}
    spec: dict[str, Any] = {"hooks": {"poststart": [own], "startContainer": [own]}}
    for _ in range(2):  # of two containers: what is found is not changed
        mine = {"hooks": dict(spec["hooks"])}
        hooks.add(found, mine)
        assert mine["hooks"] == {
            "poststart": [own, {"path": f"{tmp_path}/poststart/more", "args": ["more", "poststart"]}],
            "startContainer": [own],
        }
    without: dict[str, Any] = {}
    hooks.add({}, without)
    assert without == {}
