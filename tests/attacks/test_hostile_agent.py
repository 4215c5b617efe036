"""An agent that the guest owns: it answers what no agent of ours answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor as CppType
from google.protobuf.message import Message

from kata_agent.protos import agent_pb2
from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.errors import RuntimeRoomError
from kata_runtime.logging import printable
from kata_runtime.shim import metrics
from pod_bed import PodBed, pod_bed, settle

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\u202eroot: all is well\x9b31m"


LARGEST = {
    CppType.CPPTYPE_UINT64: 2**64 - 1,
    CppType.CPPTYPE_UINT32: 2**32 - 1,
    CppType.CPPTYPE_STRING: ESCAPES,
    CppType.CPPTYPE_BOOL: True,
}


def fill(message: Message) -> None:
    """Say the most in every field: the largest number, a text that a terminal would obey."""
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            value = kind.fields_by_name["value"]
            for key in ("oom_kill", "anon", "rss", ESCAPES):
                if value.message_type is None:
                    getattr(message, field.name)[key] = LARGEST[value.cpp_type]
                else:
                    fill(getattr(message, field.name)[key])
        elif kind is not None:
            fill(getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name))
        elif field.is_repeated:
            getattr(message, field.name).extend([LARGEST[field.cpp_type]] * 3)
        else:
            setattr(message, field.name, LARGEST[field.cpp_type])


def test_numbers_that_no_machine_has_are_passed_on_as_what_fits() -> None:
    fill(stats := agent_pb2.StatsContainerResponse())
    found = metrics.to_metrics(stats)
    assert found.memory.swap.usage == found.memory.swap.max == found.memory.usage.usage == 2**64 - 1
    assert metrics.encode(metrics.total([found] * 3)).value


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodBed]:
    async with pod_bed(tmp_path, monkeypatch) as bed:
        yield bed


@pytest.mark.parametrize("status", [-1, -(2**31), 2**31 - 1, 256, 300, 0xFF00])
async def test_an_exit_status_is_one_byte_whatever_it_says(pod: PodBed, status: int) -> None:
    await pod.started()
    pod.agent.end("web", status)
    assert 0 <= (await pod.tasks.process("web", "").wait()).status <= 255
    await pod.tasks.delete("web", "")
    assert pod.topics()[-2:] == ["TaskExit", "TaskDelete"]
    assert 0 <= pod.events[-1].exit_status <= 255  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["create_container", "start_container"])
async def test_what_a_guest_says_of_a_failure_obeys_no_terminal(pod: PodBed, method: str) -> None:
    pod.agent.failures[method] = RpcError(Code.INTERNAL, ESCAPES)
    with pytest.raises((RpcError, RuntimeRoomError)) as caught:
        await pod.started()
    shown = printable(str(caught.value))
    assert not [char for char in shown if not char.isprintable() and char not in "\n\t"]


async def test_an_event_about_others_is_not_passed_on(pod: PodBed) -> None:
    await pod.started()
    before = pod.topics()
    for name in ("other", "", "../web", "web\0", "x" * 100_000):
        pod.tasks.oom(name)
    assert pod.topics() == before


async def test_a_process_that_never_was_ends_nothing(pod: PodBed) -> None:
    await pod.started()
    for name in ("other", "", "web2"):
        pod.agent.end(name, 0)
    await settle()
    assert pod.topics() == ["TaskCreate", "TaskStart"]
    assert pod.reasons == []
