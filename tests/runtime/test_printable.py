"""Text that a guest can choose reaches operators without what their terminals would obey."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.broker.log_sink import LogSink, take_fatal_message
from kata_runtime.ctl import log_level, running, seccomp_provoke
from kata_runtime.ctl.main import main
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox
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


@pytest.mark.parametrize("words", [("seccomp", "provoke", "pod"), ("log-level", "pod")])
def test_what_a_shim_says_to_a_command_is_printable(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(*_: object) -> NoReturn:
        raise RpcError(Code.UNKNOWN, ATTACK)

    sandbox = RecordedSandbox("pod", "test", "/nowhere", "", ())
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter([sandbox]))
    for command in (log_level, seccomp_provoke):
        monkeypatch.setattr(command, "call_shim", answer)
    assert main(list(words)) == 1
    assert SHOWN in capsys.readouterr().err


OWNED = """
import time
open("/proc/self/comm", "w").write("\x1b[2Jowned")
print("named", flush=True)
time.sleep(1000)
"""


def test_the_name_that_a_vmm_gives_a_thread_is_printable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNED], stdout=subprocess.PIPE) as owned:
        assert owned.stdout is not None
        assert owned.stdout.readline() == b"named\n"
        sandbox = RecordedSandbox("pod", "test", "/nowhere", "", (RecordedProcess("qemu", owned.pid),))
        monkeypatch.setattr(running, "running_sandboxes", lambda: iter([sandbox]))
        assert main(["seccomp", "status"]) == 0
        owned.kill()
    assert "\\x1b[2Jowned" in capsys.readouterr().out
