"""docs/agent.md: what the guest's agent answers of upstream's protocol, and how it refuses the rest.

After a change of what is served: python tests/agent/test_agent_page.py
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kata_agent.guest import service
from kata_agent.guest.errors import UnsupportedError
from kata_agent.protos import agent_pb2

PAGE = Path(__file__).parents[2] / "docs" / "agent.md"
BEGIN, END = "<!-- generated: what the agent answers -->\n", "<!-- end of what the agent answers -->\n"


def sentence(name: str) -> str:
    """With which words a request is refused; empty for one that is answered."""
    if name not in service._UNSERVED:
        return ""
    request, _ = service._UNSERVED[name]
    sandbox: Any = SimpleNamespace(create=None)
    handler = service.AgentService(sandbox).handlers()["grpc.AgentService", name]
    try:
        handler.function(request())
    except UnsupportedError as error:
        return error.message
    raise AssertionError(f"{name} is answered")


def methods() -> list[str]:
    """Of the protocol, in its order."""
    described = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    return [method.name for method in described.methods]


def table() -> str:
    rows = [f"| `{name}` | {sentence(name) or 'answered'} |\n" for name in methods()]
    return "| request | |\n|---|---|\n" + "".join(rows)


def page(text: str) -> str:
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def test_the_page_has_every_request_with_its_answer() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


def test_every_request_of_the_protocol_is_served_or_refused() -> None:
    sandbox: Any = SimpleNamespace(create=None)
    served = {
        name for where, name in service.AgentService(sandbox).handlers() if where == "grpc.AgentService"
    }
    assert served == set(methods())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
