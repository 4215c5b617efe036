"""Namespaces that the containers of a sandbox share: ipc and uts always, pid if the host wants it so."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from kata_agent.guest import mounts, syscalls

_KINDS = {"ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}


class SharedNamespaces:
    """Namespaces that outlive the containers in them, kept by bind mounts.

    pid: path of the sandbox's pid namespace, or "" if each container gets its own.
    """

    def __init__(self, directory: str = "/run/kata-agent/namespaces") -> None:
        self._directory = directory
        self._paths: dict[str, str] = {}
        self.pid = ""

    def create(self, hostname: str) -> None:
        """Make the ipc and uts namespaces; the latter has this host name (the guest's, if empty).

        Raises:
            OSError: the kernel refused.
        """
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        failures: list[OSError] = []
        thread = threading.Thread(target=self._create, args=(hostname, failures), name="namespaces")
        thread.start()  # of its own: it never comes back from the new namespaces
        thread.join()
        if failures:
            raise failures[0]

    def _create(self, hostname: str, failures: list[OSError]) -> None:
        try:
            for kind, flag in _KINDS.items():
                syscalls.unshare(flag)
                path = f"{self._directory}/{kind}"
                with open(path, "x"):
                    pass
                mounts.bind(f"/proc/thread-self/ns/{kind}", path, flags=0)
                self._paths[kind] = path
            if hostname:
                socket.sethostname(hostname)
        except OSError as error:
            failures.append(error)

    def remove(self) -> None:
        """Let go of the namespaces; they end with the last process in them."""
        for path in self._paths.values():
            mounts.detach(path)
            os.unlink(path)
        self._paths.clear()

    def apply(self, spec: dict[str, Any], *, share_pid: bool) -> None:
        """Put the shared namespaces into an OCI spec.

        Paths from the host mean nothing here and are dropped. A pid namespace is added if the spec has none,
        as Kata's runtimes leave it to the agent.
        """
        linux = spec.setdefault("linux", {})
        kinds = dict.fromkeys(entry["type"] for entry in linux.get("namespaces", ()))
        kinds["pid"] = None
        paths = {**self._paths, "pid": self.pid if share_pid else ""}
        linux["namespaces"] = [
            {"type": kind, "path": paths[kind]} if paths.get(kind) else {"type": kind} for kind in kinds
        ]
