"""What installs the runtime on a cluster's nodes: manifests that Kubernetes takes, a script that is undone.

kubernetes-1.36.json is what Kubernetes 1.36 says of the kinds that the manifests have, with no key beside
those that it knows: its OpenAPI description (Apache-2.0) without the descriptions, as JSON schemas.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kata_configuration import kept
from kata_runtime.ctl import containerd
from kata_runtime.identity import STATE_ROOT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = json.loads(Path(__file__).with_name("kubernetes-1.36.json").read_text())
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all(path.read_text()))


def check(found: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless Kubernetes takes it."""
    schema = {
        "$ref": f"#/definitions/{SCHEMAS['roots'][found['kind']]}",
        "definitions": SCHEMAS["definitions"],
    }
    jsonschema.validate(found, schema)


def the(kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    (found,) = (one for path in MANIFESTS for one in objects(path) if one["kind"] == kind)
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    for found in objects(path):
        check(found)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("DaemonSet", ("spec", "template", "spec", "containers", 0, "securityContext", "privileges"), True),
        ("DaemonSet", ("spec", "template", "spec", "nodeSelector", "x"), True),
        ("DaemonSet", ("spec", "selector"), "a"),
        ("RuntimeClass", ("overhead",), "320Mi"),
        ("RuntimeClass", ("handlers",), "kata"),
    ],
)
def test_the_check_finds_what_kubernetes_does_not_take(kind: str, path: tuple[Any, ...], value: Any) -> None:
    found = place = the(kind)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(found)


def test_a_pod_comes_to_the_nodes_that_have_the_handler() -> None:
    runtime_class, pod = the("RuntimeClass"), the("DaemonSet")["spec"]["template"]["spec"]
    assert runtime_class["handler"] == containerd.HANDLER.partition("=")[0]
    label = runtime_class["scheduling"]["nodeSelector"]
    assert label.items() <= pod["nodeSelector"].items()


def test_the_images_script_is_what_its_container_runs() -> None:
    (container,) = the("DaemonSet")["spec"]["template"]["spec"]["containers"]
    recipe = (DEPLOY / "Containerfile").read_text()
    script = container["command"][0]
    assert f"COPY deploy/node.sh {script}\n" in recipe
    assert "\nCOPY release/lock/runtime.txt " in recipe
    node = (DEPLOY / "node.sh").read_text()
    assert f"STATE={STATE_ROOT}\n" in node
    assert f"JUDGED={kept.ROOT}\n" in node


# -- the script --------------------------------------------------------------------------------------------


class Host:
    """A copy of this host in a directory, where nothing that is written reaches it."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.root = directory / "host"
        for name in ("host", "upper", "work"):
            (directory / name).mkdir()
        layers = f"lowerdir=/,upperdir={directory / 'upper'},workdir={directory / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        # No mount of this host's is below it, so whoever deletes the directory deletes nothing else.
        for name, *number in (("null", 1, 3), ("urandom", 1, 9), ("kvm", 10, 232)):
            (self.root / "dev" / name).unlink(missing_ok=True)
            os.mknod(self.root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(*number))
        self._source = source
        for name in ("etc/kata-containers", "etc/containerd/config.toml", "opt/kata-runtime-py"):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in ("containerd-shim-kata-v2", "containerd-shim-containerd-kata"):
            (self.root / "usr/local/bin" / name).unlink(missing_ok=True)
        shutil.rmtree(self.root / STATE_ROOT[1:], ignore_errors=True)
        self.restarts = self.root / "restarts"
        systemctl = self.root / "usr/local/sbin/systemctl"
        systemctl.write_text("#!/bin/sh\necho $SYSTEMD_IGNORE_CHROOT $* >>/restarts\n")
        systemctl.chmod(0o755)

    def run(self, action: str) -> subprocess.CompletedProcess[str]:
        """Run the script on it."""
        environment = {**os.environ, "HOST": str(self.root), "SOURCE": str(self._source)}
        argv = [str(DEPLOY / "node.sh"), action]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=110, check=False)

    def close(self) -> None:
        subprocess.run(["umount", self.root], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image holds, with a small file for the guest's."""
    made = tmp_path_factory.mktemp("image")
    build = [sys.executable, str(ROOT / "release/project_wheel.py"), "--output", str(made / "wheels")]
    subprocess.run(build, cwd=ROOT, check=True)
    locked = ROOT / "release/lock/runtime.txt"
    argv = [sys.executable, "-m", "pip", "--quiet", "download", "--only-binary", ":all:", "--require-hashes"]
    subprocess.run([*argv, "--requirement", locked, "--dest", made / "wheels"], check=True)
    shutil.copy(locked, made)
    (made / "image").mkdir()
    (made / "image/vmlinuz").write_text("a kernel\n")
    return made


@pytest.fixture
def host(tmp_path: Path, source: Path) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Host(tmp_path, source)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.integration
@pytest.mark.timeout(600)  # a whole environment is made, twice
def test_a_node_gets_the_runtime_and_gives_it_back(host: Host) -> None:
    own = 'version = 2\n# mine\n[grpc]\n  address = "/run/x.sock"\n'
    config = host.root / "etc/containerd/config.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(own)
    done = host.run("install")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert host.restarts.read_text() == "1 restart containerd\n"
    assert 'runtime_type = "io.containerd.kata.v2"' in config.read_text()
    assert (host.root / "var/lib/kata-containers/image/vmlinuz").read_text() == "a kernel\n"
    shim = ["chroot", str(host.root), "/usr/local/bin/containerd-shim-kata-v2", "-v"]
    assert "kata" in subprocess.run(shim, capture_output=True, text=True, check=True).stdout
    configuration = host.root / "etc/kata-containers/configuration.toml"
    changed = configuration.read_text() + "# mine\n"
    configuration.write_text(changed)

    assert host.run("install").returncode == 0
    assert host.restarts.read_text() == "1 restart containerd\n", "nothing had changed"
    assert configuration.read_text() == changed

    pod = host.root / STATE_ROOT[1:] / "pod"
    pod.mkdir(parents=True)
    refused = host.run("remove")
    assert refused.returncode == 1
    assert "pods run in virtual machines on this node: nothing was removed" in refused.stderr
    assert "kata" in config.read_text()
    pod.rmdir()
    judged = host.root / kept.ROOT.relative_to("/")
    judged.mkdir(exist_ok=True)
    (judged / "entry").touch()

    done = host.run("remove")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert config.read_text() == own
    assert host.restarts.read_text() == "1 restart containerd\n" * 2
    assert not (host.root / "opt/kata-runtime-py").exists()
    assert not judged.exists()
    assert not (host.root / "usr/local/bin/containerd-shim-kata-v2").exists()
    assert configuration.read_text() == changed


@pytest.mark.integration
@pytest.mark.timeout(600)  # a whole environment is made, twice
def test_a_node_that_lacks_something_is_left_alone(host: Host) -> None:
    (host.root / "usr/bin/qemu-system-x86_64").unlink()
    done = host.run("install")
    assert done.returncode == 1
    assert "the node has no qemu-system-x86_64" in done.stderr
    assert not (host.root / "opt/kata-runtime-py").exists()
    assert not host.restarts.exists()
