"""`make kubelet`: what it says without what it needs, what it reads of a log, and which topics it has."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples/quickstart"))

import kubelet  # noqa: E402
import kubelet_stream  # noqa: E402
from kubelet_topics import TOPICS  # noqa: E402


def test_what_is_missing_is_named() -> None:
    says = "no kubelet: name its program in KATA_TEST_KUBELET" if os.geteuid() == 0 else "run it as root"
    environment = {name: value for name, value in os.environ.items() if name != "KATA_TEST_KUBELET"}
    argv = [sys.executable, str(ROOT / "tests/kubelet/run.py")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr


def test_events_of_a_pod_are_read_from_the_log() -> None:
    event = {"msg": "Event occurred", "reason": "Failed", "message": "no\nroom"}
    lines = [
        "Flag --x has been deprecated",
        json.dumps({**event, "object": {"name": "one-node"}}),
        json.dumps({**event, "object": {"name": "two-node"}}),
        json.dumps({"msg": "SyncLoop ADD", "pods": ["default/one-node"]}),
        json.dumps({**event, "object": {"name": "one-node"}, "reason": "Later"})[:-5],
    ]
    assert kubelet.events("\n".join(lines), "one-node") == ["Failed: no\nroom"]


def test_what_is_not_as_wanted_is_told_with_both() -> None:
    kubelet.expect("the same", 1, 1)
    with pytest.raises(kubelet.UnmetError, match="its limit: '1', wanted '2'"):
        kubelet.expect("its limit", "1", "2")


def _of_a_server(content: bytes, head: int = 0x82) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([head]) + length + content


def test_messages_of_a_stream() -> None:
    long = bytes(300)
    answers = io.BytesIO(
        _of_a_server(b"\x01ab")
        + _of_a_server(b"\x01a", 0x02)
        + _of_a_server(long, 0x80)
        + _of_a_server(b"", 0x88)
    )
    assert kubelet_stream.read_message(answers) == b"\x01ab"
    assert kubelet_stream.read_message(answers) == b"\x01a" + long
    assert kubelet_stream.read_message(answers) is None
    assert kubelet_stream.read_message(io.BytesIO()) is None


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_has_its_message_masked(size: int) -> None:
    message, mask = bytes(place % 251 for place in range(size)), b"\x01\x80\x00\xff"
    sent = kubelet_stream.frame(message, mask)
    kind, *wide = (sent[1] & 0x7F, 2, 8)
    head = 2 + {126: wide[0], 127: wide[1]}.get(kind, 0)
    assert sent[0] == 0x82
    assert sent[1] & 0x80
    assert (kind if kind < 126 else int.from_bytes(sent[2:head], "big")) == size
    assert sent[head : head + 4] == mask
    assert bytes(one ^ mask[place % 4] for place, one in enumerate(sent[head + 4 :])) == message


def test_the_status_of_a_command_is_in_its_last_message() -> None:
    assert kubelet_stream.exit_status(b'{"status": "Success"}') == 0
    causes = {"causes": [{"reason": "ExitCode", "message": "123"}]}
    failed = {"status": "Failure", "reason": "NonZeroExitCode", "details": causes}
    assert kubelet_stream.exit_status(json.dumps(failed).encode()) == 123
    with pytest.raises(kubelet_stream.StreamError, match="no such container"):
        kubelet_stream.exit_status(b'{"status": "Failure", "message": "no such container"}')


def test_each_topic_has_a_name_and_each_file_one_topic() -> None:
    names = [one.name for one in TOPICS]
    files = [file for one in TOPICS for file in one.files]
    assert len(names) == len(set(names))
    assert len(files) == len(set(files))
