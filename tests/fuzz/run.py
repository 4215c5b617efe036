"""Fuzz one target, guided by coverage: python tests/fuzz/run.py queue -max_total_time=60

Needs atheris. Begins with tests/fuzz/corpus/TARGET, which is kept, and with what earlier runs have left in
build/fuzz/TARGET, where new inputs go too. One that breaks a promise is written to build/fuzz, and belongs
into the corpus once that is mended.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
FOUND = HERE.parents[1] / "build/fuzz"
# What is followed: our rooms, and the two protocols that are others' code.
FOLLOWED = ["kata_agent", "kata_hypervisor", "kata_runtime", "h11", "qemu"]
sys.path.insert(0, str(HERE.parent / "support"))

with atheris.instrument_imports(include=FOLLOWED):
    import fuzz_targets


def main() -> None:
    """Parse the command line and fuzz until an error, or until libFuzzer's options say enough."""
    if len(sys.argv) < 2 or sys.argv[1] not in fuzz_targets.TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(fuzz_targets.TARGETS)}}} [options of libFuzzer]")
    name = sys.argv.pop(1)
    directories = [FOUND / name, HERE / "corpus" / name]  # the first is written to
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(_scratch(name))
    options = [f"-artifact_prefix={FOUND}/{name}-", *sys.argv[1:], *map(str, directories)]
    atheris.Setup([sys.argv[0], *options], fuzz_targets.TARGETS[name])
    atheris.Fuzz()


def _scratch(name: str) -> Path:
    """An empty directory for what a target writes: a fuzzer does not end so that it could remove it."""
    directory = FOUND / "scratch" / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


if __name__ == "__main__":
    main()
