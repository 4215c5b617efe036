"""What is read of the CRI's PodSandboxConfig, which containerd passes as the options of CreateSandbox.

Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto: PodSandboxConfig.linux, LinuxPodSandboxConfig.sysctls
and security_context, LinuxSandboxSecurityContext.namespace_options, NamespaceOption.pid and ipc, NODE.
"""

from __future__ import annotations

from typing import Any

from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.shim import protobuf_lite

_LINUX, _SYSCTLS, _KEY, _VALUE = 8, 3, 1, 2
_SECURITY, _NAMESPACES, _NODE = 2, 1, 2
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
    if not is_pod(options):
        return {}
    try:
        return {
            _text(entry, _KEY): _text(entry, _VALUE)
            for linux in _messages(options.value, _LINUX)
            for entry in _messages(linux, _SYSCTLS)
        }
    except ValueError as error:
        raise InvalidRequestError(f"cannot decode the options as PodSandboxConfig: {error}") from None


def namespaces_of(options: Any) -> list[dict[str, str]]:
    """Entries of a specification for the namespaces of which the pod is to have its own: as `sysctls_of`."""
    shared: set[str] = set()
    try:
        for linux in _messages(options.value, _LINUX) if is_pod(options) else ():
            for security in _messages(linux, _SECURITY):
                for namespaces in _messages(security, _NAMESPACES):
                    shared |= {
                        _OF_HOST[number]
                        for number, value in protobuf_lite.fields(namespaces)
                        if number in _OF_HOST and value == _NODE
                    }
    except ValueError as error:
        raise InvalidRequestError(f"cannot decode the options as PodSandboxConfig: {error}") from None
    return [{"type": kind} for kind in ("pid", "ipc", "uts") if kind not in shared]


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


def _text(message: bytes, field: int) -> str:
    """The last value of a field of text; empty where there is none. Raises UnicodeDecodeError."""
    return ([b"", *_messages(message, field)])[-1].decode()
