"""Namespaces that the containers of a sandbox share: ipc and uts always, pid if the host wants it so."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from kata_agent.guest import mounts, syscalls

_SYNONYMS = {"net": "network", "mnt": "mount"}  # what clients in Rust send for the words of the OCI
_KINDS = {"ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}


class SharedNamespaces:
    """Namespaces that outlive the containers in them, kept by bind mounts."""

    def __init__(self, directory: str = "/run/kata-agent/namespaces") -> None:
        self._directory = directory
        self._paths: dict[str, str] = {}

    @property
    def pid(self) -> str:
        """Path of the sandbox's pid namespace, or "" before the first container that is to be in it."""
        return self._paths.get("pid", "")

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
                self._keep(kind, f"/proc/thread-self/ns/{kind}")
            if hostname:
                socket.sethostname(hostname)
        except OSError as error:
            failures.append(error)

    def _keep(self, kind: str, source: str) -> None:
        path = f"{self._directory}/{kind}"
        with open(path, "x"):
            pass
        try:
            mounts.bind(source, path, flags=0)
        except BaseException:
            os.unlink(path)
            raise
        self._paths[kind] = path

    def keep_pid(self, pid: int) -> None:
        """Let the sandbox's containers share the pid namespace of a process; its pid may be reused later.

        Raises:
            OSError: it has ended.
        """
        self._keep("pid", f"/proc/{pid}/ns/pid")

    def drop_pid(self) -> None:
        """Its first process has ended, so no other can be in it; nothing where there is none."""
        if self.pid:
            self._drop("pid")

    def remove(self) -> None:
        """Let go of the namespaces; they end with the last process in them."""
        for kind in list(self._paths):
            self._drop(kind)

    def _drop(self, kind: str) -> None:
        path = self._paths.pop(kind)
        mounts.detach(path)
        os.unlink(path)

    def apply(self, spec: dict[str, Any], *, pid: str) -> None:
        """Put the shared namespaces into an OCI spec. pid: path of the pid namespace; "" for one of its own.

        Paths from the host mean nothing here and are dropped. A pid namespace is added if the spec has none,
        as Kata's runtimes leave it to the agent.
        """
        linux = spec.setdefault("linux", {})
        words = (entry["type"] for entry in linux.get("namespaces", ()))
        kinds = dict.fromkeys(_SYNONYMS.get(word, word) for word in words)
        kinds["pid"] = None
        paths = {**self._paths, "pid": pid}
        linux["namespaces"] = [
            {"type": kind, "path": paths[kind]} if paths.get(kind) else {"type": kind} for kind in kinds
        ]
