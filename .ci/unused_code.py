"""Lists code that nothing uses: what vulture finds in the packages, without what EXPECTED explains.

Fails also for an explanation that explains nothing any more. Needs the environment of `make setup`.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vulture import Vulture
from vulture.core import Item

ROOT = Path(__file__).resolve().parents[1]
USERS = [
    "configuration/kata_configuration",
    "runtime/kata_runtime",
    "hypervisor/kata_hypervisor",
    "agent/kata_agent",
    "examples",
]
LEAST_CONFIDENCE = 60


class Expected(NamedTuple):
    """What looks unused in some modules, and why it is not. Patterns as in a shell, in which * matches / too.

    kind: of vulture: "attribute", "class", "function", "method", "property", "variable", or "*".
    """

    modules: str
    kind: str
    names: str
    reason: str


STRUCTURES = "a field of a kernel's structure, which the kernel reads"
PROTOCOL = "asyncio calls it"
NUMBERS = "a number of a protocol, listed whole"
BY_NAME = "the registry names it"
PYTHON = "Python calls it"
NETWORK = "of the pod's network, which is not connected yet"

EXPECTED = [
    Expected("agent/kata_agent/guest/cgroup.py", "attribute", "use_hierarchy", "a file of cgroups version 1"),
    Expected("agent/kata_agent/transports.py", "function", "dial_*", "hosts of tests connect with them"),
    Expected("agent/kata_agent/ttrpc/connection.py", "method", "*", PROTOCOL),
    Expected("agent/kata_agent/ttrpc/frames.py", "variable", "NO_DATA", NUMBERS),
    Expected("agent/kata_agent/ttrpc/status.py", "variable", "*", NUMBERS),
    Expected("configuration/kata_configuration/__init__.py", "function", "__getattr__", PYTHON),
    Expected("configuration/kata_configuration/models/*", "*", "*", "a key or a table, which pydantic reads"),
    Expected("hypervisor/kata_hypervisor/contract.py", "variable", "tap_hotplug", NETWORK),
    Expected("hypervisor/kata_hypervisor/dragonball/*", "attribute", "*", STRUCTURES),
    Expected("hypervisor/kata_hypervisor/dragonball/kernel.py", "function", "__getitem__", PYTHON),
    Expected("hypervisor/kata_hypervisor/dragonball/unikernel.py", "class", "InProcessUnikernel", BY_NAME),
    Expected("hypervisor/kata_hypervisor/kvm/*", "attribute", "*", STRUCTURES),
    Expected("hypervisor/kata_hypervisor/output_tail.py", "method", "*", PROTOCOL),
    Expected("hypervisor/kata_hypervisor/solo5/start.py", "attribute", "*", STRUCTURES),
    Expected("hypervisor/kata_hypervisor/solo5/tender.py", "class", "*", BY_NAME),
    Expected("*/broker/operations/declaration.py", "function", "__class_getitem__", PYTHON),
    Expected("runtime/kata_runtime/network/*", "*", "*", NETWORK),
    Expected("runtime/kata_runtime/pod/boot.py", "variable", "STAGES", "tests compare documents with it"),
    Expected("runtime/kata_runtime/pod/preload.py", "*", "*", "in place of what opens files"),
]


def main() -> int:
    """Print what is unused and unexplained, and explanations without use; returns the exit status."""
    vulture = Vulture()
    vulture.scavenge([str(ROOT / path) for path in USERS], exclude=["*_pb2.py", "*_pb2.pyi"])
    used: set[Expected] = set()
    lines = []
    for item in vulture.get_unused_code(min_confidence=LEAST_CONFIDENCE):
        module = str(Path(item.filename).resolve().relative_to(ROOT))
        found = [one for one in EXPECTED if _explains(one, module, item)]
        used.update(found)
        if not found:
            lines.append(f"{module}:{item.first_lineno}: nothing uses the {item.typ} {item.name}")
    stale = [one for one in EXPECTED if one not in used]
    lines += [f"{one.modules}: {one.names}: remove this entry, it explains nothing any more" for one in stale]
    print("\n".join(lines) or "unused code: none")
    return 1 if lines else 0


def _explains(expected: Expected, module: str, item: Item) -> bool:
    return (
        fnmatchcase(module, expected.modules)
        and fnmatchcase(item.typ, expected.kind)
        and fnmatchcase(item.name, expected.names)
    )


if __name__ == "__main__":
    sys.exit(main())
