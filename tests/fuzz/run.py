"""Fuzz one target, guided by coverage: python tests/fuzz/run.py queue -max_total_time=60

Needs atheris (pip install atheris). The corpus is in tests/fuzz/corpus/TARGET; an input that finds something
is written to the current directory, and belongs into the corpus when what it found is mended.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

with atheris.instrument_imports(include=["kata_hypervisor"]):
    import fuzz_targets


def main() -> None:
    """Parse the command line and fuzz until an error, or until libFuzzer's options say enough."""
    if len(sys.argv) < 2 or sys.argv[1] not in fuzz_targets.TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(fuzz_targets.TARGETS)}}} [options of libFuzzer]")
    name = sys.argv.pop(1)
    corpus = HERE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([*sys.argv, str(corpus)], fuzz_targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
