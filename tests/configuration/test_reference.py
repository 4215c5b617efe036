"""The reference page, and the explanation of single keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_configuration.judge.removed_keys import KEYS
from kata_configuration.models import TABLES
from kata_configuration.tell import reference
from kata_configuration.tell.facts import Key, every_key
from kata_runtime.ctl.main import main

PAGE = Path(__file__).parents[2] / "docs/configuration.md"

DEFAULT_MAXVCPUS = """\
hypervisor.qemu.default_maxvcpus
    The most virtual CPUs that a virtual machine may have; 0 is the host's number.
    type       integer
    default    0
    range      0 to 255
    drivers    qemu, clh, firecracker, dragonball
    since      Kata 3.0.0
    annotation io.katacontainers.config.hypervisor.default_max_vcpus, guarded
    effect in  size of the machine
    status     honoured
"""

DIAL_TIMEOUT = """\
agent.*.dial_timeout
    was the time in seconds to reach the agent, until Kata's runtime-rs; dial_timeout_ms is another thing, \
the pause between two attempts
    write reconnect_timeout_ms
"""


def test_the_page_is_what_the_models_write() -> None:
    # After a change of a model: kata-ctl config reference > docs/configuration.md
    assert PAGE.read_text(encoding="utf-8") == reference.page()


def test_the_page_has_every_key() -> None:
    page = reference.page()
    for key in every_key():
        assert f"{key.name}`" in page
    for _, name in KEYS:
        assert f"{name}`" in page


def test_the_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "reference"]) == 0
    assert capsys.readouterr().out == reference.page()


@pytest.mark.parametrize(
    ("key", "expected"),
    [("hypervisor.qemu.default_maxvcpus", DEFAULT_MAXVCPUS), ("dial_timeout", DIAL_TIMEOUT)],
)
def test_a_key_is_explained(key: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", key]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("key", list(every_key()), ids=lambda key: ".".join(key.path))
def test_every_key_can_be_explained(key: Key) -> None:
    dotted = ".".join(key.path)
    assert any(dotted in text.splitlines()[0] for text in reference.explain(dotted))
    assert any(dotted in text for text in reference.explain(key.name))
    for alias in key.aliases:
        assert any(dotted in text for text in reference.explain(alias))


def test_places_that_say_the_same_are_explained_once() -> None:
    texts = reference.explain("disable_seccomp")
    same = ("clh", "firecracker", "solo5-hvt")
    assert texts[0].startswith("".join(f"hypervisor.{name}.disable_seccomp\n" for name in same))
    assert [text.splitlines()[0] for text in texts[1:]] == [
        "hypervisor.dragonball.disable_seccomp",
        "hypervisor.qemu.disable_seccomp",
        "hypervisor.solo5-spt.disable_seccomp",
    ]


@pytest.mark.parametrize("path", TABLES)
def test_a_table_is_explained(path: tuple[str, ...]) -> None:
    [text] = reference.explain(".".join(path))
    assert all(name in text for name in TABLES[path].model_fields)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("default_memry", "did you mean default_memory?"),
        ("hypervisor.qemu.kernl", "did you mean hypervisor.qemu.kernel?"),
        ("hypervisor.qemu.dial_timeout_m", "did you mean dial_timeout_ms?"),
        ("xyzzy", "kata-ctl config reference lists all keys"),
        ("", "kata-ctl config reference lists all keys"),
    ],
)
def test_an_unknown_key(key: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", key]) == 1
    assert capsys.readouterr() == ("", f'there is no key "{key}": {hint}\n')
