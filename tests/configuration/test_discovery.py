"""Which file is in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import ConfigurationError, discover
from kata_configuration.layer.discovery import CONFIG_PATH, DEFAULT, ENVIRONMENT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the file must be root's")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Four files, one for each rule."""
    paths = {name: tmp_path / f"{name}.toml" for name in ("given", "named", "first", "second")}
    for path in paths.values():
        path.touch(mode=0o644)
    return paths


def message(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call()
    return str(caught.value)


@needs_root
def test_precedence(files: dict[str, Path]) -> None:
    defaults = (files["first"], files["second"])
    environment = {ENVIRONMENT: str(files["named"])}
    assert discover(str(files["given"]), environment, defaults) == (files["given"], CONFIG_PATH)
    assert discover(None, environment, defaults) == (files["named"], ENVIRONMENT)
    assert discover("", {ENVIRONMENT: ""}, defaults) == (files["first"], DEFAULT)
    files["first"].unlink()
    assert discover(None, {}, defaults) == (files["second"], DEFAULT)


def test_a_named_file_that_is_missing_is_the_error(files: dict[str, Path]) -> None:
    defaults = (files["first"],)
    expected = "/absent.toml: error[KATA002] does not exist (create it or name another file)"
    assert message(lambda: discover("/absent.toml", {}, defaults)) == expected
    assert message(lambda: discover(None, {ENVIRONMENT: "/absent.toml"}, defaults)) == expected


def test_a_default_that_leads_nowhere_is_the_error(files: dict[str, Path], tmp_path: Path) -> None:
    dangling = tmp_path / "dangling.toml"
    dangling.symlink_to("/absent.toml")
    assert message(lambda: discover(None, {}, (dangling, files["second"]))).startswith(
        f"{dangling}: error[KATA002]"
    )


def test_no_file_at_all_lists_the_places() -> None:
    assert message(lambda: discover(None, {}, (Path("/absent/a"), Path("/absent/b")))) == (
        "/absent/a: error[KATA002] no configuration file: looked at /absent/a and /absent/b "
        "(create one there, or name one: ConfigPath in containerd's runtime options, or KATA_CONF_FILE)"
    )


def test_relative_paths_and_directories_are_refused(tmp_path: Path) -> None:
    assert "containerd's ConfigPath is not an absolute path" in message(lambda: discover("a.toml", {}))
    assert "KATA_CONF_FILE is not an absolute path" in message(
        lambda: discover(None, {ENVIRONMENT: "a.toml"})
    )
    assert "is a directory" in message(lambda: discover(str(tmp_path), {}))
    assert "NUL byte" in message(lambda: discover("/a\0b", {}))
