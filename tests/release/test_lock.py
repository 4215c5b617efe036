"""The lock is what pyproject.toml asks for, no more and no less, each package with its hashes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locked import Locked, read

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
RUNTIME, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
ASKED = {"runtime": RUNTIME, "development": [*RUNTIME, *EXTRAS["dev"]], "fuzz": [*RUNTIME, *EXTRAS["fuzz"]]}


def lock(name: str) -> list[Locked]:
    return read((ROOT / f"release/lock/{name}.txt").read_text())


def applies(marker: str, python: str, machine: str = "x86_64") -> bool:
    if not marker:
        return True
    return Requirement(f"x ; {marker}").marker.evaluate(  # type: ignore[union-attr]
        {
            "python_version": python,
            "python_full_version": f"{python}.1",
            "platform_machine": machine,
            "sys_platform": "linux",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
    )


def versions(name: str, python: str) -> dict[str, str]:
    """What is installed for a Python; a package may be there once."""
    here = [one for one in lock(name) if applies(one.marker, python)]
    assert len({one.name for one in here}) == len(here)
    return {one.name: one.version for one in here}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_for_is_locked_within_its_range(name: str, python: str) -> None:
    locked = versions(name, python)
    for requirement in map(Requirement, ASKED[name]):
        if requirement.marker and not applies(str(requirement.marker), python):
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"release/lock/{name}.txt lacks {requirement.name}: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: run make lock"


@pytest.mark.parametrize("name", ASKED)
def test_nothing_is_locked_that_nothing_asks_for(name: str) -> None:
    asked = {canonicalize_name(Requirement(one).name) for one in ASKED[name]}
    packages = lock(name)
    names = {one.name for one in packages}
    for one in packages:
        assert one.needed_by, one.name
        assert set(one.needed_by) <= names | {PROJECT["name"]}
        assert (PROJECT["name"] in one.needed_by) == (one.name in asked), f"{one.name}: run make lock"


@pytest.mark.parametrize("name", ASKED)
def test_every_package_has_its_hashes(name: str) -> None:
    assert all(one.hashes and len(set(one.hashes)) == len(one.hashes) for one in lock(name))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_file_of_the_lock_has_the_same_versions(python: str) -> None:
    development = versions("development", python)
    assert versions("runtime", python).items() <= development.items()
    assert versions("fuzz", python).items() - {("atheris", versions("fuzz", python)["atheris"])} <= (
        development.items()
    )


def test_what_builds_the_project_is_locked_too() -> None:
    locked = versions("development", PYTHONS[0])
    for requirement in map(Requirement, BUILD):
        assert requirement.specifier.contains(locked[requirement.name])


def test_a_line_that_is_none_of_a_lock_is_an_error() -> None:
    good = (
        "anyio==4.16.0 \\\n    --hash=sha256:" + "ab" * 32 + "\n    # via kata-runtime-py (pyproject.toml)\n"
    )
    assert read(good) == [Locked("anyio", "4.16.0", "", ["ab" * 32], ["kata-runtime-py"])]
    for bad in ("anyio==4.16.0", "anyio>=4 \\", "-e .", "    --hash=sha256:" + "ab" * 32, "--index-url x"):
        with pytest.raises(ValueError, match="not a line of a lock"):
            read(bad)
