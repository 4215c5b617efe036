"""crictl, and a node whose pods get a network of CNI's.

KATA_TEST_CRICTL names its program: `go build ./cmd/crictl` in the sources of cri-tools makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import busybox_image
import containerd_versions
import cri_settings
from namespaced_node import NamespacedNode
from node import IMAGE, Client
from patience import PATIENCE

PROGRAM = os.environ.get("KATA_TEST_CRICTL", "")
PLUGINS = Path("/usr/lib/cni")
GATEWAYS = ("10.238.7.1", "fd00:ed8::1")
BUDGET = max(100.0, PATIENCE)
"""Seconds that a command may take: a machine in an emulated machine takes longer to start."""
PAUSE = "localhost/kata-quickstart/pause:1"
NAMES = {"servers": ["10.238.7.53"], "searches": ["svc.example"], "options": ["ndots:3"]}

BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.238.7.0/24"}], [{"subnet": "fd00:ed8::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}

RECORDER = """\
#!/usr/bin/python3
# The last plugin of the list: called last by ADD, and first by DEL, so that it sees the same namespace.
import json, os, subprocess, sys
configuration, command = json.load(sys.stdin), os.environ["CNI_COMMAND"]
if command == "VERSION":
    print(json.dumps({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}))
    sys.exit()
if not os.environ["CNI_NETNS"]:
    sys.exit()  # deleted once more, without the namespace
look = (
    "ip -d address show", "ip route show table all", "ip neigh show nud permanent", "tc qdisc show",
    "tc filter show dev eth0 parent ffff:", "iptables-save", "ip6tables-save",
)
enter = ["nsenter", "--net=" + os.environ["CNI_NETNS"]]
# By DEL containerd has set loopback down already.
subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
found = [subprocess.run([*enter, *one.split()], capture_output=True, text=True).stdout for one in look]
path = os.path.join(configuration["directory"], os.environ["CNI_CONTAINERID"] + "." + command)
with open(path, "w") as file:
    json.dump({"namespace": "".join(found).splitlines(), "result": configuration.get("prevResult")}, file)
if command == "ADD":
    print(json.dumps(configuration["prevResult"]))
"""


class Cri:
    """crictl for a node whose pods get a network of CNI's."""

    def __init__(
        self,
        directory: Path,
        image: Path,
        version: str = containerd_versions.SYSTEM,
        further: Sequence[str] = (),
    ) -> None:
        """directory: for files. image: directory of the guest image. version: of containerd.

        further: handlers beside ours, as `cri_settings.runtime` writes them.
        """
        self.directory = directory
        for name in ("bin", "net.d", "records"):
            (directory / name).mkdir()
        for program in PLUGINS.iterdir():
            (directory / "bin" / program.name).symlink_to(program)
        recorder = directory / "bin/recorder"
        recorder.write_text(RECORDER)
        recorder.chmod(0o755)
        bridge = {**BRIDGE, "ipam": {**BRIDGE["ipam"], "dataDir": str(directory / "addresses")}}  # type: ignore[dict-item]
        plugins = [
            bridge,
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "recorder", "directory": str(directory / "records")},
        ]
        network = {"cniVersion": "1.0.0", "name": "kt", "plugins": plugins}
        (directory / "net.d/kt.conflist").write_text(json.dumps(network))
        runtimes = [
            cri_settings.runtime("kata"),
            cri_settings.runtime("bare", configuration=directory / "bare.toml"),
            *further,
        ]
        settings = cri_settings.plugin(
            runtimes,
            default="kata",
            pause=PAUSE,
            plugins=directory / "bin",
            networks=directory / "net.d",
        )
        self.bed = NamespacedNode(directory, image, cri=settings, version=version)
        bare = self.bed.node.configuration("bare", internetworking_model="none")
        (directory / "bare.toml").write_bytes(bare.read_bytes())
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(scratch) / "image.tar"
            busybox_image.write_image(archive, PAUSE, ("sleep", "3600"))
            self.bed.node.ctr("image", "import", archive)

    def command(self, *arguments: str) -> list[str]:
        """The argv of a command."""
        endpoint = f"unix://{self.bed.node.containerd.address}"
        options = (
            "--runtime-endpoint",
            endpoint,
            "--image-endpoint",
            endpoint,
            "--timeout",
            f"{BUDGET:.0f}s",
        )
        return [*self.bed.inside, PROGRAM, *options, *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = self.command(*arguments)
        return subprocess.run(argv, capture_output=True, text=True, timeout=BUDGET + 10, check=False)

    def run(self, *arguments: str) -> str:
        """Run a command, which succeeds; returns what it prints."""
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _file(self, name: str, content: object) -> str:
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(content))
        return str(path)

    def pod_file(
        self, name: str, linux: object = None, ports: Sequence[object] = (), **fields: object
    ) -> str:
        """Write what crictl takes for a pod. fields: further ones of its PodSandboxConfig."""
        metadata = {"name": name, "namespace": "default", "uid": name, "attempt": 1}
        pod = {"metadata": metadata, "linux": linux or {}, "port_mappings": [*ports], "dns_config": NAMES}
        return self._file(name, {**pod, "log_directory": str(self.directory / "logs"), **fields})

    def start(self, pod: str, file: str, name: str, script: str, **fields: object) -> str:
        """Start a container of a pod; returns its id. fields: further ones of its ContainerConfig."""
        container = {"metadata": {"name": name}, "image": {"image": IMAGE}, "log_path": f"{name}.log"}
        made = self._file(name, {**container, "command": ["sh", "-c", script], **fields})
        made = self.run("create", pod, made, file)
        self.run("start", made)
        return made

    def record(self, pod: str, command: str) -> Any:
        """What the recorder saw of a pod's namespace."""
        return json.loads((self.directory / "records" / f"{pod}.{command}").read_text())

    @contextmanager
    def forwarded(self, pod: str, port: int) -> Iterator[Client]:
        """`crictl port-forward` from port 18080 of the node's loopback."""
        with Client(self.command("port-forward", pod, f"18080:{port}")) as client:
            self.bed.node.until(lambda: "Forwarding from" in client.output or client.ended, "port-forward")
            assert not client.ended, client.errors
            yield client


def require() -> None:
    """Skip where there is no crictl, or no CNI."""
    if not PROGRAM:
        pytest.skip("no crictl: name its program in KATA_TEST_CRICTL")
    for program in (PLUGINS / "bridge", "nsenter", "iptables-save"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make packages")
