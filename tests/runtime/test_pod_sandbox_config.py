"""What a pod's configuration asks for by the sandbox API."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.shim.pod_sandbox_config import check_sysctls, namespaces_of, sysctls_of
from kata_runtime.shim.protobuf_lite import bytes_field, number_field

URL = "runtime.v1.PodSandboxConfig"


def config(sysctls: dict[str, str]) -> bytes:
    """A PodSandboxConfig as containerd encodes it, with other fields beside it."""
    entries = [bytes_field(1, key) + bytes_field(2, value) for key, value in sysctls.items()]
    linux = bytes_field(1, "/kubepods") + b"".join(bytes_field(3, entry) for entry in entries)
    return bytes_field(2, "pod") + number_field(20, 7) + bytes_field(8, linux)


def test_sysctls_of_a_pod() -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
    assert sysctls_of(Any(type_url=URL, value=config(sysctls))) == sysctls
    assert sysctls_of(Any(type_url="other", value=b"\xff")) == {}
    assert sysctls_of(Any(type_url=URL)) == {}


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cannot decode the options as PodSandboxConfig"):
        sysctls_of(Any(type_url=URL, value=b"\x42\xff"))


NODE = 2


@pytest.mark.parametrize(
    ("modes", "own"),
    [
        ({}, ["pid", "ipc", "uts"]),
        ({1: NODE, 2: 0, 3: 1}, ["pid", "ipc", "uts"]),
        ({2: NODE}, ["ipc", "uts"]),
        ({3: NODE}, ["pid", "uts"]),
        ({2: NODE, 3: NODE}, ["uts"]),
    ],
)
def test_namespaces_of_a_pod(modes: dict[int, int], own: list[str]) -> None:
    options = b"".join(number_field(number, mode) for number, mode in modes.items())
    linux = bytes_field(2, bytes_field(1, options) + number_field(3, 1))
    found = namespaces_of(Any(type_url=URL, value=bytes_field(8, linux)))
    assert [entry["type"] for entry in found] == own
    assert len(namespaces_of(Any(type_url="other", value=b"\xff"))) == 3
    with pytest.raises(InvalidRequestError, match="cannot decode the options as PodSandboxConfig"):
        namespaces_of(Any(type_url=URL, value=b"\x42\xff"))


@given(st.binary())
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    try:
        found = sysctls_of(Any(type_url=URL, value=data))
    except InvalidRequestError:
        return
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())


def test_only_sysctls_of_namespaces() -> None:
    check_sysctls({"net.core.somaxconn": "1", "fs.mqueue.msg_max": "1", "kernel.sem": "1 1 1 1"})
    for name in ("vm.swappiness", "kernel.hostname", "kernel.msg_next_id", "fs.file-max", "network", ""):
        with pytest.raises(UnsupportedError, match=f"cannot set the sysctl {name} for a pod"):
            check_sysctls({name: "1"})
