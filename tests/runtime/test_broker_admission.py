"""What a sealed shim may still ask of its broker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.broker.authorization import Authorization
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError

ID = "pod"


class Host:
    """containerd's two directories, with one sandbox's bundle in them."""

    def __init__(self, root: Path) -> None:
        self.state, self.root = root / "run", root / "lib"
        self.snapshots = self.root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
        self.snapshots.mkdir(parents=True)
        self.bundle = self.add_bundle(ID)

    def add_bundle(self, name: str, **spec: Any) -> Path:
        bundle = self.state / "io.containerd.runtime.v2.task" / "k8s.io" / name
        work = self.root / "io.containerd.runtime.v2.task" / "k8s.io" / name
        bundle.mkdir(parents=True)
        work.mkdir(parents=True)
        (bundle / "work").symlink_to(work)
        (bundle / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}, **spec}))
        return bundle

    def sealed(self) -> Authorization:
        authorization = Authorization(str(self.bundle), ID)
        authorization.seal()
        return authorization


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def read(authorization: Authorization, bundle: Path) -> dict[str, Any]:
    fd = authorization.open_spec(str(bundle))
    with open(fd, "rb") as file:
        return dict(json.load(file))


def test_before_the_seal_everything_is_admitted(host: Host) -> None:
    authorization = Authorization(str(host.bundle), ID)
    authorization.check_operation("spawn")
    authorization.check_bind("/etc")
    assert authorization.finder(["/etc"]) is None
    authorization.check_fifo("/anywhere/else/fifo")
    authorization.check_log("/var/log/any")
    assert read(authorization, host.add_bundle("other"))["root"] == {"path": "rootfs"}


@pytest.mark.parametrize("op", ["spawn", "prepare", "announce_seal"])
def test_a_sealed_sandbox_starts_nothing(host: Host, op: str) -> None:
    with pytest.raises(RequestRefusedError, match=f"{op}: the sandbox is sealed"):
        host.sealed().check_operation(op)


@pytest.mark.parametrize(
    "said",
    [
        {"annotations": {"io.kubernetes.cri.sandbox-id": ID}},
        {"annotations": {"io.kubernetes.cri-o.SandboxID": ID}},
    ],
)
def test_the_sources_of_the_pods_containers_are_shared(host: Host, said: dict[str, Any]) -> None:
    authorization = host.sealed()
    bundle = host.add_bundle("app", mounts=[{"destination": "/d", "source": "/var/data"}], **said)
    with pytest.raises(RequestRefusedError, match=r"cannot share /var/data: no config\.json of"):
        authorization.check_bind("/var/data")
    read(authorization, bundle)
    authorization.check_bind("/var/data")
    authorization.check_bind(f"{bundle}/rootfs")
    authorization.check_bind(f"{bundle}/rootfs/")
    for other in ("/var", "/var/data/..", "/var/data/x", "/"):
        with pytest.raises(RequestRefusedError):
            authorization.check_bind(other)


def test_the_file_that_containerd_2_writes_names_the_sandbox_too(host: Host) -> None:
    bundle = host.add_bundle("app")
    (bundle / "sandbox").write_text(ID)
    assert read(host.sealed(), bundle)


def test_another_pods_specification_is_not_read(host: Host) -> None:
    authorization = host.sealed()
    other = host.add_bundle(
        "secret",
        process={"env": ["PASSWORD=x"]},
        mounts=[{"destination": "/d", "source": "/secret"}],
        annotations={"io.kubernetes.cri.sandbox-id": "another"},
    )
    before = os.listdir("/proc/self/fd")
    with pytest.raises(
        RequestRefusedError, match=r"secret/config\.json is not of a container of the sandbox"
    ):
        authorization.open_spec(str(other))
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(RequestRefusedError):
        authorization.check_bind("/secret")


def test_a_link_or_a_fifo_is_no_specification(host: Host, tmp_path: Path) -> None:
    (bundle := tmp_path / "links").mkdir()
    (bundle / "config.json").symlink_to(host.bundle / "config.json")
    with pytest.raises(RequestFailedError, match=r"cannot read .*config\.json: Too many levels"):
        host.sealed().open_spec(str(bundle))
    with pytest.raises(RequestFailedError, match=r"cannot read /none/config\.json: No such file"):
        host.sealed().open_spec("/none")


def found(authorization: Authorization, path: str) -> str:
    """Where the file is that a sealed sandbox's mount gets for this path."""
    find = authorization.finder([path])
    assert find is not None
    fd = find(path)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_mounts_come_from_containerds_snapshots(host: Host) -> None:
    layer = host.snapshots / "1" / "fs"
    layer.mkdir(parents=True)
    assert found(host.sealed(), str(layer)) == str(layer)
    for path in ("/", "/etc", "relative", "", f"{host.root}/elsewhere"):
        with pytest.raises(RequestRefusedError, match="it is not among containerd's snapshots"):
            found(host.sealed(), path)
    with pytest.raises(OSError, match="Invalid cross-device link"):
        found(host.sealed(), f"{host.snapshots}/../../../x")


@pytest.mark.parametrize("path", ["1/fs/out", "1/fs/out/passwd", "link/fs"])
def test_a_link_that_a_guest_has_made_leads_nowhere(host: Host, path: str) -> None:
    (host.snapshots / "1" / "fs").mkdir(parents=True)
    (host.snapshots / "1" / "fs" / "out").symlink_to("/etc")
    (host.snapshots / "link").symlink_to("1")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        found(host.sealed(), f"{host.snapshots}/{path}")


def test_containerds_root_may_be_a_link(host: Host, tmp_path: Path) -> None:
    (host.snapshots / "1").mkdir()
    (tmp_path / "data").symlink_to(host.root)
    (host.bundle / "work").unlink()
    (host.bundle / "work").symlink_to(tmp_path / "data" / "io.containerd.runtime.v2.task" / "k8s.io" / ID)
    through = tmp_path / "data" / host.snapshots.relative_to(host.root) / "1"
    assert found(host.sealed(), str(through)) == str(host.snapshots / "1")


def test_a_snapshotter_of_its_own_is_known_by_the_first_container(host: Host, tmp_path: Path) -> None:
    (pool := tmp_path / "pool").mkdir()
    for name in ("snap-1", "snap-2"):
        (pool / name).touch()
    authorization = Authorization(str(host.bundle), ID)
    assert authorization.finder([f"{pool}/snap-1"]) is None
    authorization.seal()
    assert found(authorization, f"{pool}/snap-2") == f"{pool}/snap-2"
    with pytest.raises(RequestRefusedError):
        found(authorization, "/dev/null")


def test_streams_are_containerds(host: Host, tmp_path: Path) -> None:
    authorization = Authorization(str(host.bundle), ID)
    authorization.check_fifo("/srv/client/a/stdout")
    authorization.check_log("/var/log/pods/a.log")
    authorization.seal()
    authorization.check_fifo(f"{host.state}/fifo/123/app-stdout")
    authorization.check_fifo("/srv/client/b/stdout")
    authorization.check_log("/var/log/pods/b.log")
    with pytest.raises(RequestRefusedError, match="cannot open a FIFO at /run/initctl"):
        authorization.check_fifo("/run/initctl")
    with pytest.raises(RequestRefusedError, match=r"cannot open a log at /etc/cron\.d/x"):
        authorization.check_log("/etc/cron.d/x")


def test_a_bundle_of_somebody_else_gives_no_directories(tmp_path: Path) -> None:
    (bundle := tmp_path / "bundle").mkdir()
    authorization = Authorization(str(bundle), ID)
    authorization.check_fifo("/stdout")
    authorization.seal()
    for check in (authorization.check_fifo, authorization.check_log, lambda path: found(authorization, path)):
        with pytest.raises(RequestRefusedError):
            check("/anything")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"mounts": 3, "root": []}', '{"mounts": [3, {"source": 4}]}']
)
def test_a_specification_that_is_none_admits_nothing(host: Host, text: str) -> None:
    (host.bundle / "config.json").write_text(text)
    authorization = host.sealed()
    os.close(authorization.open_spec(str(host.bundle)))
    with pytest.raises(RequestRefusedError):
        authorization.check_bind("/etc")
