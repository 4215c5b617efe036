"""A node whose containerd, with the bridges of its clients, is in a network namespace of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import containerd_versions
from network_bed import Netns
from node import Node

_FETCH = "from urllib.request import urlopen as get; print(get('http://{}').read().decode())"


class NamespacedNode:
    """Such a node. directory: for files. image: directory of the guest image. cri: as `Node` takes it.

    version: of containerd, see `containerd_versions.find`.
    """

    def __init__(
        self, directory: Path, image: Path, *, cri: str = "", version: str = containerd_versions.SYSTEM
    ) -> None:
        self.namespace = Netns("client")
        self.namespace.ip("link", "set", "lo", "up")
        self.inside = ["nsenter", f"--net={self.namespace.path}"]
        programs = containerd_versions.find(version)
        wrapper = directory / "containerd"
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(self.inside)} {programs.containerd} "$@"\n')
        wrapper.chmod(0o755)
        self.node = Node(replace(programs, containerd=wrapper), image, cri=cri)
        self.node.start()

    def run(self, *argv: str) -> str:
        """Run a program in the namespace to its end; returns what it prints."""
        done = self.namespace.run(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fetch(self, place: str) -> str:
        """A page from an address, port and path."""
        return self.run("python3", "-c", _FETCH.format(place))

    def nat(self) -> str:
        """The rules by which ports are published."""
        return self.run("iptables-save", "-t", "nat")

    def check_empty(self) -> None:
        """Wait until the pods have left: their machines and their veths."""
        self.node.until(lambda: not self.node.sandboxes(), "the sandbox's end")
        self.node.until(lambda: "veth" not in self.namespace.ip("link", "show"), "the end of the pod's veth")

    def close(self) -> None:
        """End containerd, and remove the namespace."""
        self.node.close()
        self.namespace.close()
