"""What is imported when the process is sealed was loaded before: an import that comes later is refused."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

from kata_runtime.template import maker

LOADED = """
import sys
import kata_runtime.template.maker
from kata_runtime.pod import kvm_failure, machine_spec, preload
preload.load()
print(*[name for name in sys.argv[1:] if name not in sys.modules], sep="\\n")
"""


def imported_in(function: object) -> set[str]:
    """The modules that a function imports where it is called, and what it takes from them if that is one."""
    source = ast.parse(inspect.getsource(function))  # type: ignore[arg-type]
    nodes = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    packages = ("kata_agent.protos", "kata_runtime.pod")
    return {
        f"{node.module}.{name.name}" if node.module in packages else str(node.module)
        for node in nodes
        for name in node.names
    }


def test_what_a_template_is_made_with_after_the_seal_is_loaded_before() -> None:
    wanted = sorted(imported_in(maker._wait_for_agent))
    assert wanted == ["kata_agent.protos.health_pb2", "kata_runtime.pod.agent_connection"]
    command = [sys.executable, "-c", LOADED, *wanted]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""
