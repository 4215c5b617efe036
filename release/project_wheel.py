"""Build the wheel, and write its bill of materials beside it, from the lock of what it needs to run.

The same sources give the same bytes: hatchling gives every file one time, SOURCE_DATE_EPOCH where that is
set, and one of two modes. The wheel is built without a network, by the hatchling of the lock.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from kata_runtime.image import cyclonedx
from kata_runtime.image.cyclonedx import Component
from locked import Locked, read

ROOT = Path(__file__).parents[1]
BACKEND = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"  # PEP 517
LOCK = ROOT / "release/lock/runtime.txt"


def build(root: Path, output: Path) -> Path:
    """Build the wheel of a source tree, and return its path in the output, an absolute directory.

    Raises:
        CalledProcessError: hatchling failed; it has written why.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", BACKEND, str(output)]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return output / done.stdout.splitlines()[-1]


def bill_of_materials(project: str, wheel: Path, locked: Sequence[Locked]) -> str:
    """Return the wheel's bill of materials as a file's text. project: its name in pyproject.toml."""
    version = wheel.name.split("-")[1]

    def needs(name: str) -> list[str]:
        return [_purl(one.name, one.version) for one in locked if name in one.needed_by]

    pieces = [
        Component(
            "library",
            one.name,
            one.version,
            _purl(one.name, one.version),
            downloads=one.hashes,
            needs=needs(one.name),
        )
        for one in locked
    ]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    subject = Component(
        "application", project, version, _purl(project, version), digest, needs=needs(project)
    )
    return cyclonedx.write(subject, pieces)


def _purl(name: str, version: str) -> str:
    return cyclonedx.package_url("pypi", name, version=version)


def main() -> None:
    """Parse the command line, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="a directory (%(default)s)")
    output = parser.parse_args().output.absolute()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    wheel = build(ROOT, output)
    bill = wheel.with_name(wheel.name.removesuffix(".whl") + ".cdx.json")
    bill.write_text(
        bill_of_materials(project, wheel, read(LOCK.read_text(encoding="utf-8"))), encoding="utf-8"
    )
    for path in (wheel, bill):
        print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
