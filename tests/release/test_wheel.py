"""The wheel: the same bytes from the same sources, and a bill of materials that others can read."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

import project_wheel
from kata_runtime.version import VERSION
from locked import read

ROOT = Path(__file__).parents[2]
SOURCES = (
    "configuration",
    "runtime",
    "hypervisor",
    "agent",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".gitignore",
)
NAME = f"kata_runtime_py-{VERSION}-py3-none-any.whl"


def files() -> list[Path]:
    """The sources of the wheel, relative to the project's root."""
    found: list[Path] = []
    for name in SOURCES:
        path = ROOT / name
        found += [path] if path.is_file() else [one for one in sorted(path.rglob("*")) if one.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def copy(names: Sequence[Path], place: Path, umask: int) -> Path:
    """Copy sources as a checkout with this umask has them, with the times of now."""
    before = os.umask(umask)
    try:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
    finally:
        os.umask(before)
    return place


def build(place: Path, output: Path, umask: int) -> Path:
    before = os.umask(umask)
    try:
        return project_wheel.build(place, output)
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    return build(copy(files(), place / "here", 0o022), place / "out", 0o022)


@pytest.mark.parametrize("epoch", [None, "1700000000"])
def test_the_same_sources_give_the_same_wheel(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: str | None
) -> None:
    elsewhere = copy(files()[::-1], tmp_path / "another/place", 0o077)
    os.utime(elsewhere / "agent/kata_agent/client.py", (1, 1))
    (elsewhere / "agent/kata_agent/__pycache__").mkdir()
    (elsewhere / "agent/kata_agent/__pycache__/client.cpython-311.pyc").write_bytes(b"stale")
    if epoch is None:
        assert build(elsewhere, tmp_path / "out", 0o077).read_bytes() == built.read_bytes()
        return
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    one, other = (
        build(elsewhere, tmp_path / "out", 0o077),
        build(built.parents[1] / "here", tmp_path / "b", 0o022),
    )
    assert one.read_bytes() == other.read_bytes() != built.read_bytes()


def test_the_wheel_has_every_source_of_the_rooms(built: Path) -> None:
    assert built.name == NAME
    packed = set(zipfile.ZipFile(built).namelist())
    rooms = {name.relative_to(name.parts[0]) for name in files() if len(name.parts) > 2}
    assert {str(name) for name in rooms} <= packed


def test_the_bill_of_materials_is_cyclonedx(built: Path) -> None:
    locked = read(project_wheel.LOCK.read_text())
    text = project_wheel.bill_of_materials("kata-runtime-py", built, locked)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == project_wheel.bill_of_materials("kata-runtime-py", built, locked[::-1])
    bill = json.loads(text)
    assert {(one["name"], one["version"]) for one in bill["components"]} == {
        (one.name, one.version) for one in locked
    }
    for one in (*bill["components"], bill["metadata"]["component"]):
        assert PackageURL.from_string(one["purl"]).to_string() == one["purl"]
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert needs.keys() == {one["bom-ref"] for one in (*bill["components"], bill["metadata"]["component"])}
    assert {need for group in needs.values() for need in group} == {
        one["bom-ref"] for one in bill["components"]
    }


def test_another_lock_has_another_serial_number(built: Path) -> None:
    locked = read(project_wheel.LOCK.read_text())
    bills = [json.loads(project_wheel.bill_of_materials("x", built, some)) for some in (locked, locked[:3])]
    assert bills[0]["serialNumber"] != bills[1]["serialNumber"]
