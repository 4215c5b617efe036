"""What a running sandbox logs: the levels of the shim's service, and kata-ctl log-level."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_agent.ttrpc.server import Server
from kata_hypervisor.output_tail import follow
from kata_runtime.containerd_api.loglevels_pb2 import LogLevels
from kata_runtime.ctl import log_level, running
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.log_level import wanted_levels
from kata_runtime.ctl.main import COULD_NOT_RUN, main
from kata_runtime.ctl.running import RecordedSandbox
from kata_runtime.errors import InvalidRequestError
from kata_runtime.logging import HYPERVISOR, LEVELS, RUNTIME, level_of, set_level
from kata_runtime.shim.codes import to_rpc_error
from kata_runtime.shim.log_service import LogService


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """The process logs afterwards as it did."""
    loggers = [logging.getLogger(name) for name in (RUNTIME, HYPERVISOR)]
    before = [logger.level for logger in loggers]
    loggers[0].setLevel(logging.INFO)
    loggers[1].setLevel(logging.NOTSET)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_has_its_name(level: str) -> None:
    set_level(HYPERVISOR, level)
    assert LEVELS[level_of(HYPERVISOR)] == LEVELS[level]
    assert level_of(RUNTIME) == "info"


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        ([], {}),
        (["debug"], {"runtime": "debug", "hypervisor": "debug"}),
        (["hypervisor=warn"], {"hypervisor": "warn"}),
        (["error", "runtime=info"], {"runtime": "info", "hypervisor": "error"}),
    ],
)
def test_levels_of_the_command(words: list[str], levels: dict[str, str]) -> None:
    assert wanted_levels(words) == levels


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("verbose", "there is no log level 'verbose'; use one of trace, debug"),
        ("=", "there is no log level ''"),
        ("=debug", "there is no component ''; use one of runtime, hypervisor"),
        ("vmm=debug", "there is no component 'vmm'"),
        ("agent=debug", "cannot change the level of the agent: .*set enable_debug in \\[agent.kata\\]"),
    ],
)
def test_words_that_are_no_level(word: str, sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        wanted_levels([word])


async def test_the_service_sets_all_or_none() -> None:
    service = LogService()
    assert await service.set_levels(LogLevels()) == LogLevels(runtime="info", hypervisor="info")
    with pytest.raises(InvalidRequestError, match="hypervisor has no log level 'loud'; use one of trace"):
        await service.set_levels(LogLevels(runtime="debug", hypervisor="loud"))
    assert level_of(RUNTIME) == "info"
    both = LogLevels(runtime="error", hypervisor="debug")
    assert await service.set_levels(both) == both
    assert (level_of(RUNTIME), level_of(HYPERVISOR)) == ("error", "debug")


async def test_lines_of_a_guest_follow_the_level(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    follower = await follow(
        os.fdopen(reader, "rb", buffering=0), logging.getLogger(f"{HYPERVISOR}.qemu.console")
    )
    set_level(HYPERVISOR, "info")
    os.write(writer, b"unheard\n")
    while "unheard" not in follower.tail.text:  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(0)
    set_level(HYPERVISOR, "debug")
    os.write(writer, b"100 %s heard\n")
    os.close(writer)
    await follower.ended.wait()
    await follower.aclose()
    assert caplog.messages == ["100 %s heard"]


async def test_the_command_asks_the_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = str(tmp_path / "shim.sock")
    pod = RecordedSandbox("pod1", "k8s.io", "/nowhere", address, ())
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter([pod]))
    assert await asyncio.to_thread(main, ["log-level", "pod"]) == COULD_NOT_RUN
    assert "cannot connect to the shim" in capsys.readouterr().err
    server = Server(LogService().handlers(), on_error=to_rpc_error)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    serving = asyncio.create_task(server.serve(listener))
    try:
        assert await asyncio.to_thread(main, ["log-level", "pod", "hypervisor=debug"]) == log_level.DONE
        assert capsys.readouterr().out == "runtime      info\nhypervisor   debug\n"
    finally:
        serving.cancel()
        listener.close()
    assert level_of(HYPERVISOR) == "debug"


def test_no_such_sandbox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter([]))
    assert main(["log-level", "pod", "debug"]) == COULD_NOT_RUN
    assert "no running sandbox has an id that starts with 'pod'" in capsys.readouterr().err
    assert main(["log-level", "pod", "loud"]) == COULD_NOT_RUN
    assert "there is no log level 'loud'" in capsys.readouterr().err
