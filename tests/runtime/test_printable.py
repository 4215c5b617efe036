"""Text that a guest can choose reaches operators without what their terminals would obey."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.broker.log_sink import LogSink, take_fatal_message
from kata_runtime.errors import SandboxError
from kata_runtime.logging import line, printable
from kata_runtime.shim.codes import to_rpc_error

ATTACK = "no\x1b]0;title\x07\r\x9b2J\u202eevil\u2028"
SHOWN = "no\\x1b]0;title\\x07\\x0d\\x9b2J\\u202eevil\\u2028"


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    assert printable(shown) == shown
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    "error", [RpcError(Code.UNKNOWN, ATTACK), SandboxError("guest", ATTACK), ValueError(ATTACK)]
)
def test_an_error_to_containerd_is_printable(error: Exception) -> None:
    assert to_rpc_error("Create", error).message.endswith(SHOWN)


def test_what_is_no_text_is_shown_too() -> None:
    assert printable("a\ud800") == "a\\ud800"


def test_a_log_line_is_printable_and_one_line() -> None:
    text = line("error", ATTACK + "\nmore", "pod", 0)
    assert text.count("\n") == 1
    assert f'msg="{SHOWN}\\nmore"' in text


def test_what_the_broker_leaves_is_printable(tmp_path: Path) -> None:
    LogSink(str(tmp_path), "pod").keep(ATTACK)
    assert take_fatal_message(str(tmp_path)) == SHOWN
