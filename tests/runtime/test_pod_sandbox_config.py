"""What a pod's configuration asks for by the sandbox API."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.shim.pod_sandbox_config import (
    cgroup_of,
    check_sysctls,
    hostname_of,
    name_servers_of,
    namespaces_of,
    sums_of,
    sysctls_of,
)
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


def test_the_host_name_of_a_pod() -> None:
    assert hostname_of(Any(type_url=URL, value=config({}))) == "pod"
    assert hostname_of(Any(type_url="other", value=config({}))) == ""


def test_name_servers_of_a_pod() -> None:
    """As containerd writes resolv.conf for the sandboxes that it makes itself."""
    texts = {1: ("10.0.0.1", "fd00::1"), 2: ("svc.example", "example"), 3: ("ndots:5", "edns0")}
    dns = b"".join(bytes_field(number, text) for number, those in texts.items() for text in those)
    expected = (
        "search svc.example example",
        "nameserver 10.0.0.1",
        "nameserver fd00::1",
        "options ndots:5 edns0",
    )
    assert name_servers_of(Any(type_url=URL, value=bytes_field(4, dns))) == expected
    assert name_servers_of(Any(type_url=URL, value=config({}))) == ()
    assert name_servers_of(Any(type_url="other", value=b"\xff")) == ()


@pytest.mark.parametrize("text", ["10.0.0.1\noptions rotate", "10.0.0.1\0"])
def test_a_name_server_is_one_line(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="dns_config"):
        name_servers_of(Any(type_url=URL, value=bytes_field(4, bytes_field(1, text))))


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/pod1", "/kubepods/pod1/s1"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:s1"),
        ("", ""),
    ],
)
def test_the_cgroup_of_a_pod(parent: str, path: str) -> None:
    """As containerd names it for the sandboxes that it makes itself."""
    options = Any(type_url=URL, value=bytes_field(8, bytes_field(1, parent)))
    assert cgroup_of(options, "s1") == path
    assert cgroup_of(Any(type_url="other", value=b"\xff"), "s1") == ""


def test_the_sums_of_a_pods_limits() -> None:
    limits = number_field(1, 100000) + number_field(2, (1 << 64) - 1) + number_field(4, 1 << 28)
    options = Any(type_url=URL, value=bytes_field(8, bytes_field(5, limits)))
    assert sums_of(options) == {
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-cpu-quota": "-1",
        "io.kubernetes.cri.sandbox-memory": str(1 << 28),
    }
    assert sums_of(Any(type_url="other", value=b"\xff")) == {}


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
    options = Any(type_url=URL, value=data)
    for read in (sysctls_of, hostname_of, name_servers_of, namespaces_of, sums_of):
        with suppress(InvalidRequestError):
            read(options)
    with suppress(InvalidRequestError):
        assert isinstance(cgroup_of(options, "s1"), str)


def test_only_sysctls_of_namespaces() -> None:
    check_sysctls({"net.core.somaxconn": "1", "fs.mqueue.msg_max": "1", "kernel.sem": "1 1 1 1"})
    for name in ("vm.swappiness", "kernel.hostname", "kernel.msg_next_id", "fs.file-max", "network", ""):
        with pytest.raises(UnsupportedError, match=f"cannot set the sysctl {name} for a pod"):
            check_sysctls({name: "1"})
