"""What is read of the CRI's PodSandboxConfig, which containerd passes as the options of CreateSandbox.

Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto: PodSandboxConfig.hostname, dns_config and linux,
DNSConfig, LinuxPodSandboxConfig.cgroup_parent, security_context, sysctls and resources,
LinuxSandboxSecurityContext.namespace_options, NamespaceOption.pid and ipc, NODE, LinuxContainerResources.
What containerd makes of them for sandboxes of its own: internal/cri/server/podsandbox.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.shim import protobuf_lite

_HOSTNAME, _DNS = 2, 4
_SERVERS, _SEARCHES, _OPTIONS = 1, 2, 3
_LINUX, _SYSCTLS, _KEY, _VALUE = 8, 3, 1, 2
_SECURITY, _NAMESPACES, _NODE = 2, 1, 2
_CGROUP_PARENT, _RESOURCES = 1, 5
_SUMS = {1: "sandbox-cpu-period", 2: "sandbox-cpu-quota", 4: "sandbox-memory"}
_OF_HOST = {2: "pid", 3: "ipc"}

_OF_IPC = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_OF_NAMESPACES = ("net.", "fs.mqueue.")


def is_pod(options: Any) -> bool:
    """Whether options, an Any, are a PodSandboxConfig."""
    url: str = options.type_url
    return url.endswith("PodSandboxConfig")


def sysctls_of(options: Any) -> dict[str, str]:
    """The pod's sysctls by name.

    options: an Any, of another type perhaps, which has none.

    Raises:
        InvalidRequestError: it is typed as a PodSandboxConfig, and is none.
    """
    with _decoding(options) as config:
        return {
            _text(entry, _KEY): _text(entry, _VALUE)
            for linux in _messages(config, _LINUX)
            for entry in _messages(linux, _SYSCTLS)
        }


def hostname_of(options: Any) -> str:
    """The pod's host name, "" where it says none: as `sysctls_of`."""
    with _decoding(options) as config:
        return _text(config, _HOSTNAME)


def name_servers_of(options: Any) -> tuple[str, ...]:
    """The lines of the pod's resolv.conf (resolv.conf(5)), none where it says nothing: as `sysctls_of`."""
    lines: list[str] = []
    with _decoding(options) as config:
        for dns in _messages(config, _DNS):
            servers, searches, settings = (
                [value.decode() for value in _messages(dns, field)]
                for field in (_SERVERS, _SEARCHES, _OPTIONS)
            )
            lines += [" ".join(("search", *searches))] if searches else []
            lines += [f"nameserver {server}" for server in servers]
            lines += [" ".join(("options", *settings))] if settings else []
    if any(not line.isprintable() for line in lines):
        raise InvalidRequestError(
            "dns_config of the PodSandboxConfig has a line break or a control character"
        )
    return tuple(lines)


def cgroup_of(options: Any, sandbox_id: str) -> str:
    """The sandbox's linux.cgroupsPath, "" where the pod has no cgroup above it: as `sysctls_of`."""
    with _decoding(options) as config:
        parents = [_text(linux, _CGROUP_PARENT) for linux in _messages(config, _LINUX)]
    parent = ["", *parents][-1]
    unit = os.path.basename(parent)
    if unit.endswith(".slice"):
        return f"{unit}:cri-containerd:{sandbox_id}"
    return f"{parent.rstrip('/')}/{sandbox_id}" if parent else ""


def sums_of(options: Any) -> dict[str, str]:
    """The sums of the limits of the pod's containers, as annotations of a sandbox: as `sysctls_of`."""
    with _decoding(options) as config:
        return {
            f"io.kubernetes.cri.{_SUMS[number]}": str(_signed(value))
            for linux in _messages(config, _LINUX)
            for resources in _messages(linux, _RESOURCES)
            for number, value in protobuf_lite.fields(resources)
            if number in _SUMS and isinstance(value, int)
        }


def namespaces_of(options: Any) -> list[dict[str, str]]:
    """Entries of a specification for the namespaces of which the pod is to have its own: as `sysctls_of`."""
    with _decoding(options) as config:
        shared = {
            _OF_HOST[number]
            for linux in _messages(config, _LINUX)
            for security in _messages(linux, _SECURITY)
            for namespaces in _messages(security, _NAMESPACES)
            for number, value in protobuf_lite.fields(namespaces)
            if number in _OF_HOST and value == _NODE
        }
    return [{"type": kind} for kind in ("pid", "ipc", "uts") if kind not in shared]


@contextmanager
def _decoding(options: Any) -> Iterator[bytes]:
    """The encoded configuration, empty in options of another type; what cannot be decoded is refused."""
    try:
        yield options.value if is_pod(options) else b""
    except ValueError as error:
        raise InvalidRequestError(f"cannot decode the options as PodSandboxConfig: {error}") from None


def check_sysctls(sysctls: dict[str, str]) -> None:
    """Raise UnsupportedError for a sysctl that is of no namespace which a pod has for itself."""
    for name in sysctls:
        if name not in _OF_IPC and not name.startswith(_OF_NAMESPACES):
            raise UnsupportedError(
                f"cannot set the sysctl {name} for a pod: it belongs neither to the network nor to the IPC "
                "namespace; remove it from the pod's securityContext.sysctls"
            )


def _messages(message: bytes, field: int) -> list[bytes]:
    return [
        value
        for number, value in protobuf_lite.fields(message)
        if number == field and isinstance(value, bytes)
    ]


def _signed(value: int) -> int:
    """An int64 of the protobuf encoding, which has two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _text(message: bytes, field: int) -> str:
    """The last value of a field of text; empty where there is none. Raises UnicodeDecodeError."""
    return ([b"", *_messages(message, field)])[-1].decode()
