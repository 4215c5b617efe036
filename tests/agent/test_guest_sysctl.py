"""Sysctls that the agent sets: of the network for containers that share the guest's, and of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_agent.guest.errors import InvalidRequestError
from kata_agent.guest.system import promise_memory, set_network_parameters


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /proc/sys with one parameter."""
    (tmp_path / "net/ipv4").mkdir(parents=True)
    (tmp_path / "net/ipv4/ip_forward").write_text("0\n")
    return tmp_path


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net/ipv4/ip_forward"])
def test_both_spellings_are_written(root: Path, name: str) -> None:
    set_network_parameters({name: "1"}, str(root))
    assert (root / "net/ipv4/ip_forward").read_text() == "1\n"


@pytest.mark.parametrize(
    "name", ["kernel.msgmax", "net", "net..ipv4", "net.ipv4...kernel", "net/../kernel/x", ""]
)
def test_nothing_else_is(root: Path, name: str) -> None:
    with pytest.raises((InvalidRequestError, OSError)):
        set_network_parameters({name: "1"}, str(root))


def test_a_parameter_that_does_not_exist_is_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="net/ipv4/absent"):
        set_network_parameters({"net.ipv4.absent": "1"}, str(root))


def test_the_kernel_promises_any_amount_of_memory(tmp_path: Path) -> None:
    (tmp_path / "overcommit_memory").write_text("0\n")
    promise_memory(str(tmp_path / "overcommit_memory"))
    assert (tmp_path / "overcommit_memory").read_text() == "1"
