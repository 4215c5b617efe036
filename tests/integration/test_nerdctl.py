"""nerdctl, whose network comes by hooks: a published port serves a page of the guest.

KATA_TEST_NERDCTL names its program, 2.0 or later: `go build ./cmd/nerdctl` in nerdctl's sources makes one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaced_node import NamespacedNode
from node import IMAGE, RUNTIME, Client

pytestmark = pytest.mark.integration

PROGRAM = os.environ.get("KATA_TEST_NERDCTL", "")
PLUGINS = Path("/usr/lib/cni")
PAGE = "a page of the guest"


class Nerdctl:
    """nerdctl for a node."""

    def __init__(self, directory: Path, bed: NamespacedNode) -> None:
        self.bed = bed
        (directory / "net.d").mkdir()
        self._prefix = [
            *bed.inside,
            *("env", f"PATH={bed.node.root}/bin:{os.environ['PATH']}", PROGRAM),
            *("--address", str(bed.node.containerd.address), "--namespace", bed.node.namespace),
            *("--data-root", str(directory / "data"), "--cgroup-manager", "cgroupfs"),
            *("--cni-path", str(PLUGINS), "--cni-netconfpath", str(directory / "net.d")),
        ]

    def command(self, *arguments: str) -> list[str]:
        """The argv of a command."""
        return [*self._prefix, *arguments]

    def run(self, *arguments: str) -> str:
        """Run a command to its end; returns what it prints."""
        argv = self.command(*arguments)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def nerdctl(tmp_path: Path, guest_image: Path) -> Iterator[Nerdctl]:
    if not PROGRAM:
        pytest.skip("no nerdctl: name its program in KATA_TEST_NERDCTL")
    for program in (PLUGINS / "bridge", "nsenter", "iptables-save"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make packages")
    bed = NamespacedNode(tmp_path, guest_image)
    try:
        yield Nerdctl(tmp_path, bed)
    finally:
        bed.close()


def test_a_published_port_serves_a_page(nerdctl: Nerdctl) -> None:
    bed = nerdctl.bed
    script = f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; echo up; exec sleep 3600"
    options = ("--rm", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "-p", "8080:80")
    with Client(nerdctl.command("run", *options, IMAGE, "sh", "-c", script)) as client:
        bed.node.until(lambda: client.output == "up\n" or client.ended, "its output")
        assert not client.ended, client.errors
        for address in ("127.0.0.1", "10.4.0.1"):
            assert bed.fetch(f"{address}:8080/index.html") == PAGE
        assert "to-destination 10.4.0." in bed.nat()
        nerdctl.run("rm", "-f", "web")
        client.wait()
    bed.check_empty()
    assert "to-destination" not in bed.nat(), "the poststop hook did not run"


def test_a_network_of_none_is_none(nerdctl: Nerdctl) -> None:
    options = ("--rm", "--pull", "never", "--runtime", RUNTIME, "--network", "none")
    assert nerdctl.run("run", *options, IMAGE, "ls", "/sys/class/net").split() == ["lo"]


def test_a_detached_container_has_logs(nerdctl: Nerdctl) -> None:
    """Its logger is nerdctl itself, which also writes down what came last."""
    script = "echo begun; echo warned >&2; trap 'echo ended; exit 3' TERM; while :; do sleep 0.1; done"
    options = ("-d", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "--network", "none")
    made = nerdctl.run("run", *options, IMAGE, "sh", "-c", script).strip()
    assert nerdctl.bed.node.sandboxes() == [made]
    nerdctl.bed.node.until(lambda: "begun" in nerdctl.run("logs", "web"), "its log")
    with Client(nerdctl.command("logs", "-f", "web")) as client:
        nerdctl.bed.node.until(lambda: "warned" in client.errors or client.ended, "what it wrote to stderr")
        assert nerdctl.run("exec", "web", "echo", "in it") == "in it\n"
        nerdctl.run("stop", "web")
        client.wait()
        assert client.output == "begun\nended\n"
    nerdctl.run("start", "web")
    nerdctl.bed.node.until(lambda: nerdctl.run("logs", "web").count("begun") == 2, "the second run's log")
    nerdctl.run("rm", "-f", "web")
    nerdctl.bed.check_empty()
