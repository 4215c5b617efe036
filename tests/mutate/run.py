"""Mutation testing: whether the unit tests notice a mistake in a module, each that a person might make.

usage: run.py [MODULE...] [--sample N] [--seed N]

A mutant is never on disk: it is what a forked process imports in the module's place before it runs the tests
that are named for the module in modules.toml. A mutant that no test notices must have a reason there, and a
reason must have its mutant. Exit status 1: one has not.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "support"))

import hypothesis  # noqa: E402 - once, so that no fork need load it
import pytest  # noqa: E402

from kata_hypervisor import libc  # noqa: E402
from mutants import Mutant, mutants  # noqa: E402

SLOWER = 10
"""How many times as long as without a mistake the tests may take; a loop without an end does."""

# That an example fails is enough: it need not be the smallest, nor be kept.
hypothesis.settings.register_profile(
    "mutate", database=None, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
hypothesis.settings.load_profile("mutate")
LOADED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Of hypothesis, by the above, before pytest could rewrite its assertions; it has none."""


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a source of ours."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code
        self.used = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See MetaPathFinder."""
        if fullname != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        """See Loader."""
        self.used = True
        module.__file__ = str(self.path)
        exec(self.code, module.__dict__)


def passes(name: str, path: Path, source: str, tests: Sequence[str], limit: float | None) -> bool:
    """Whether the tests pass with this source of the module. limit: seconds, after which they do not."""
    pid = os.fork()
    if pid == 0:
        libc.die_with_parent(signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        status = 2
        try:
            instead = Instead(name, path, compile(source, str(path), "exec"))
            sys.meta_path.insert(0, instead)
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "-n", "0", *LOADED, *tests]
            status = int(pytest.main(arguments))
            status = status if instead.used else 3
        finally:
            os._exit(status)
    os.setpgid(pid, pid)
    deadline = time.monotonic() + limit if limit is not None else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status) == 3:
                raise SystemExit(f"the tests of {name} do not import it")
            return status == 0
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.02)


def judge(path: Path, named: dict[str, object], draw: random.Random, sample: int) -> list[str]:
    """Try the mutants of one module: a line for each that is wrong."""
    tests, reasons = named["tests"], dict(named.get("reasons", {}))  # type: ignore[call-overload]
    assert isinstance(tests, list)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])
    source = path.read_text(encoding="utf-8")
    begin = time.monotonic()
    if not passes(name, path, source, tests, None):
        return ["its tests fail without a mistake"]
    limit = SLOWER * (time.monotonic() - begin)
    every: list[Mutant] = list(mutants(source))
    tried = draw.sample(every, min(sample, len(every))) if sample else every
    survivors, wrong = [], []
    for one in tried:
        if passes(name, path, one.source, tests, limit):
            survivors.append(one)
            if one.name not in reasons:
                wrong.append(f"line {one.line}, {one.name}")
                print(f"    not noticed: {wrong[-1]}", flush=True)
    if not sample:
        known = {one.name for one in survivors}
        wrong += [f"a reason without its mutant: {text}" for text in reasons if text not in known]
    without = sum(line.startswith("line") for line in wrong)
    killed = len(tried) - len(survivors)
    print(
        f"{path.relative_to(ROOT)}: {len(every)} mutants, {len(tried)} tried, {killed} noticed, "
        f"{len(survivors) - without} with a reason, {without} without; {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(known)}; all without")
    parser.add_argument("--sample", type=int, default=0, help="so many of each module's, drawn; without, all")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - known.keys():
        parser.error(f"no module with this name: {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    draw, failed = random.Random(arguments.seed), False
    for module in arguments.modules or known:
        wrong = judge(ROOT / known[module]["path"], known[module], draw, arguments.sample)
        print(*(f"    {line}" for line in wrong if not line.startswith("line")), sep="\n", flush=True)
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
