"""What the broker imports late is loaded by the seal, or is needed only before: no two versions are mixed.

Another version may be installed over the files of a running pod's processes; `kata_runtime.closed_imports`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

from import_graph import modules
from kata_runtime.broker.operations.lifecycle import FEATURES
from kata_runtime.broker.self_confinement import LATER

BROKER = """
import importlib, sys
from kata_runtime.broker import server
from kata_hypervisor.seccomp import filter
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sys.modules, sep="\\n")
"""
EVERYTHING = tuple(name for names in LATER.values() for name in names)
STARTED = ("kata_runtime.broker.api_filter", "kata_runtime.broker.hook_runner")
"""Of the broker of some pods; what these import late counts too."""

EARLY = {
    ("kata_hypervisor.driver_info", "kata_hypervisor.versions"): "kata-ctl asks it which versions are known",
    ("kata_runtime.broker.context", "kata_runtime.broker.api_filter"): "hold_monitor comes before the seal",
    ("kata_runtime.broker.context", "kata_runtime.broker.self_confinement"): "it is what closes importing",
    ("kata_runtime.broker.hooks", "kata_runtime.broker.hook_runner"): "learn_hooks comes before the seal",
    ("kata_runtime.broker.pod_network", "kata_runtime.network.exchange"): "`read` is kata-ctl's",
    ("kata_runtime.broker.pod_network", "kata_runtime.network.record"): "`read` is kata-ctl's",
    ("kata_runtime.broker.pod_network", "kata_runtime.network.taps"): "open_tap comes before the seal",
    ("kata_runtime.logging", "logging"): "it is the shim's",
    ("kata_runtime.network.asking", "anyio"): "`ask_async` is the shim's",
}
"""What is imported before the seal only, or in another process, and why."""


@cache
def loaded(*more: str) -> frozenset[str]:
    """The modules of a broker's process that has imported these too."""
    command = [sys.executable, "-c", BROKER, *more]
    return frozenset(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def late_imports(tree: ast.AST, *, inside: bool = False) -> Iterator[str]:
    """What the functions of a module import when they are called."""
    for node in ast.iter_child_nodes(tree):
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if within and isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif within and isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in names)
        else:
            yield from late_imports(node, inside=within)


def wanted() -> set[tuple[str, str]]:
    """Pairs of a module that a broker may have loaded, and one that it imports late."""
    there = loaded(*EVERYTHING, *STARTED) & modules().keys()
    return {(name, target) for name in there for target in late_imports(modules()[name])}


def test_what_the_broker_imports_late_is_loaded_by_the_seal_or_needed_before() -> None:
    there = loaded(*EVERYTHING)
    assert {pair for pair in wanted() if pair[1] not in there} == EARLY.keys()


def test_what_is_loaded_by_the_seal_is_imported_late_and_belongs_to_a_feature() -> None:
    assert {*EVERYTHING} <= {target for _, target in wanted()} - loaded()
    assert LATER.keys() <= {"", *FEATURES}


CLOSED = """
import json, sys
from kata_runtime import closed_imports
closed_imports.close()
import json
assert "html" not in sys.modules
import html
"""


def test_a_module_that_was_not_loaded_is_named_and_one_that_was_is_there() -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: module html was not loaded before the process was sealed\n")
