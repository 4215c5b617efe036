"""Who a sandbox is, and where everything of it lives on the host.

Standard library's built-in modules only: the launcher and the broker import this before anything else.
"""

from __future__ import annotations

import os

try:  # hashlib costs three times what the rest of the launcher does: it loads OpenSSL
    from _sha2 import sha256  # Python 3.12 and later
except ImportError:
    from _sha256 import sha256

MAX_SPEC = 4 << 20
"""Bytes of a config.json: what is larger is refused."""

STATE_ROOT = "/run/kata-containers"
SOCKET_ROOT = "/run/containerd/s"
# Annotations of a container that name its sandbox: the CRI of containerd, and CRI-O.
SANDBOX_KEYS = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    found: str = sha256(data).hexdigest()
    return found


class InvalidIdError(ValueError):
    """A container, sandbox or exec id that cannot be part of a path."""


def check_id(identifier: str, what: str = "id") -> str:
    """Return the identifier when it can be part of a path.

    The rule takes all that containerd accepts: 1 to 76 characters of A-Z a-z 0-9 . _ - that begin and end
    with a letter or digit.

    Raises:
        InvalidIdError: it breaks the rule.
    """
    ok = (
        0 < len(identifier) <= 76
        and identifier.isascii()
        and identifier[0].isalnum()
        and identifier[-1].isalnum()
    )
    if not ok or not all(char.isalnum() or char in "._-" for char in identifier):
        raise InvalidIdError(
            f"invalid {what} {identifier[:100]!r}: use 1 to 76 letters, digits, '.', '_' or '-', "
            "starting and ending with a letter or digit"
        )
    return identifier


class SandboxIdentity:
    """A sandbox, named by the containerd that owns it, the namespace there, and its id.

    address: containerd's gRPC address. namespace: containerd's namespace. id: the sandbox's id.
    """

    __slots__ = ("address", "id", "key", "namespace", "socket_root")

    def __init__(self, address: str, namespace: str, id: str, socket_root: str = SOCKET_ROOT) -> None:  # noqa: A002
        self.address = address
        self.namespace = check_id(namespace, "namespace")
        self.id = check_id(id, "sandbox id")
        self.socket_root = socket_root
        self.key = digest(f"{address}/{namespace}/{id}".encode())

    @property
    def directory(self) -> str:
        """The sandbox's private directory (mode 0700): record, rollback journal, shared directory, sockets.

        Its name is short, because the paths of unix sockets below it may have 107 bytes only.
        """
        return os.path.join(STATE_ROOT, self.key[:32])

    @property
    def shared_directory(self) -> str:
        """The directory of the host that the guest shares."""
        return os.path.join(self.directory, "shared")

    @property
    def socket(self) -> str:
        """Path of the unix socket on which the shim serves containerd."""
        return os.path.join(self.socket_root, self.key)
