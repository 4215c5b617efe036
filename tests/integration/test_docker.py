"""Docker 26 and later, which attaches a network between Create and Start, by the pid of Create's answer.

KATA_TEST_DOCKER names a directory with dockerd, docker and docker-proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaced_node import NamespacedNode
from node import RUNTIME
from oci_bundle import write_rootfs

pytestmark = pytest.mark.integration

PROGRAMS = Path(os.environ.get("KATA_TEST_DOCKER", "/nowhere"))
PAGE = "a page of the guest"


class Docker:
    """A docker engine on a node, with an image `busybox`."""

    def __init__(self, directory: Path, bed: NamespacedNode) -> None:
        self.bed = bed
        node = bed.node
        socket = node.root / "docker.sock"
        search = f"{node.root}/bin:{PROGRAMS}:{os.environ['PATH']}"
        self._environment = {"PATH": search, "DOCKER_HOST": f"unix://{socket}", "HOME": str(directory)}
        (directory / "daemon.json").write_text("{}")
        self.log = directory / "dockerd.log"
        argv = [
            *(*bed.inside, str(PROGRAMS / "dockerd"), "--config-file", str(directory / "daemon.json")),
            *("--containerd", str(node.containerd.address), "--containerd-namespace", node.namespace),
            *("--containerd-plugins-namespace", f"{node.namespace}-plugins", "--host", f"unix://{socket}"),
            *("--data-root", str(directory / "data"), "--exec-root", str(node.root / "docker")),
            *("--pidfile", str(directory / "docker.pid"), "--ip6tables=false"),
            *("--userland-proxy-path", str(PROGRAMS / "docker-proxy")),
        ]
        with self.log.open("wb") as log:
            self._engine = subprocess.Popen(argv, stdout=log, stderr=log, env=self._environment)
        try:
            node.until(lambda: self._is_up() or self._engine.poll() is not None, "the engine")
            assert self._is_up(), self.log.read_text()
            self._import(directory / "rootfs")
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        return self._docker("version").returncode == 0

    def _import(self, rootfs: Path) -> None:
        write_rootfs(rootfs)
        archive = rootfs.with_suffix(".tar")
        subprocess.run(["tar", "-C", str(rootfs), "-cf", str(archive), "."], check=True)
        self.run("import", str(archive), "busybox")

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAMS / "docker"), *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            env=self._environment,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Run a command to its end; returns what it prints."""
        done = self._docker(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def close(self) -> None:
        """End the engine."""
        self._engine.terminate()
        self._engine.wait(60)


@pytest.fixture
def docker(tmp_path: Path, guest_image: Path) -> Iterator[Docker]:
    missing = [name for name in ("dockerd", "docker", "docker-proxy") if not (PROGRAMS / name).exists()]
    if missing:
        pytest.skip(f"no {missing[0]}: name its directory in KATA_TEST_DOCKER")
    for program in ("nsenter", "iptables-save"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make packages")
    bed = NamespacedNode(tmp_path, guest_image)
    try:
        engine = Docker(tmp_path, bed)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        bed.close()


def test_a_published_port_serves_a_page(docker: Docker) -> None:
    bed = docker.bed
    script = f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; echo up; exec sleep 3600"
    docker.run(
        "run", "-d", "--name", "web", "--runtime", RUNTIME, "-p", "8080:80", "busybox", "sh", "-c", script
    )
    bed.node.until(lambda: docker.run("logs", "web") == "up", "its output")
    address = docker.run("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web")
    assert f" {address}/" in docker.run("exec", "web", "ip", "address", "show", "dev", "eth0")
    for host in ("127.0.0.1", "172.17.0.1"):
        assert bed.fetch(f"{host}:8080/index.html") == PAGE
    pid = docker.run("inspect", "--format", "{{.State.Pid}}", "web")
    assert Path(f"/proc/{pid}/comm").read_text() == "kata-init\n"
    docker.run("rm", "-f", "web")
    bed.check_empty()
    assert f"to-destination {address}" not in bed.nat()


def test_what_was_created_can_be_removed_and_started_again(docker: Docker) -> None:
    docker.run("create", "--name", "one", "--runtime", RUNTIME, "busybox", "true")
    docker.run("rm", "one")
    docker.run("create", "--name", "two", "--runtime", RUNTIME, "busybox", "sh", "-c", "exit 3")
    for _ in range(2):
        docker.run("start", "two")
        assert docker.run("wait", "two") == "3"
    docker.run("rm", "two")
    docker.bed.check_empty()
