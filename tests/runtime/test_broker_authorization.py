"""What a sealed shim may still ask of its broker."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.broker.authorization import Authorization
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.phase import Phase
from kata_runtime.broker.streams import Streams

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
        """After a first container, whose root is of containerd's overlay snapshotter."""
        authorization = Authorization(str(self.bundle), ID)
        authorization.finder("overlay", "overlay", [f"lowerdir={self.snapshots}/0/fs", "index=off"])
        authorization.seal()
        return authorization


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def read(authorization: Authorization, bundle: Path) -> dict[str, Any]:
    fd = authorization.open_spec(str(bundle))
    with open(fd, "rb") as file:
        return dict(json.load(file))


def check_bind(authorization: Authorization, source: str) -> None:
    """Raise RequestRefusedError unless it may be shared, writable and with what is mounted below."""
    authorization.source_finder(source, readonly=False, recursive=True, readonly_below=False)


def test_before_the_seal_everything_is_authorized(host: Host) -> None:
    authorization = Authorization(str(host.bundle), ID)
    check_bind(authorization, "/etc")
    assert authorization.finder("bind", "/etc", []) is None
    authorization.fifo_opener("/anywhere/else/fifo")
    authorization.log_opener("/var/log/any")
    assert read(authorization, host.add_bundle("other"))["root"] == {"path": "rootfs"}


def test_the_seal_is_a_phase(host: Host) -> None:
    phases = [authorization.phase for authorization in (Authorization(str(host.bundle), ID), host.sealed())]
    assert phases == [Phase.LEARNING, Phase.SEALED]


@pytest.mark.parametrize(
    "fields",
    [
        {"annotations": {"io.kubernetes.cri.sandbox-id": ID}},
        {"annotations": {"io.kubernetes.cri-o.SandboxID": ID}},
    ],
)
def test_the_sources_of_the_pods_containers_are_shared(host: Host, fields: dict[str, Any]) -> None:
    authorization = host.sealed()
    bundle = host.add_bundle(
        "app", mounts=[{"destination": "/d", "source": "/var/data", "type": "bind"}], **fields
    )
    with pytest.raises(RequestRefusedError, match=r"cannot share /var/data: no config\.json of"):
        check_bind(authorization, "/var/data")
    read(authorization, bundle)
    check_bind(authorization, "/var/data")
    check_bind(authorization, f"{bundle}/rootfs")
    check_bind(authorization, f"{bundle}/rootfs/")
    for other in ("/var", "/var/data/..", "/var/data/x", "/"):
        with pytest.raises(RequestRefusedError):
            check_bind(authorization, other)


def test_the_file_that_containerd_2_writes_names_the_sandbox_too(host: Host) -> None:
    bundle = host.add_bundle("app")
    (bundle / "sandbox").write_text(ID)
    assert read(host.sealed(), bundle)


def test_another_pods_specification_is_not_read(host: Host) -> None:
    authorization = host.sealed()
    other = host.add_bundle(
        "secret",
        process={"env": ["PASSWORD=x"]},
        mounts=[{"destination": "/d", "source": "/secret", "type": "bind"}],
        annotations={"io.kubernetes.cri.sandbox-id": "another"},
    )
    before = os.listdir("/proc/self/fd")
    with pytest.raises(
        RequestRefusedError, match=r"secret/config\.json is not of a container of the sandbox"
    ):
        authorization.open_spec(str(other))
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(RequestRefusedError):
        check_bind(authorization, "/secret")


def test_a_link_or_a_fifo_is_no_specification(host: Host, tmp_path: Path) -> None:
    bundle = host.add_bundle("links")
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to(host.bundle / "config.json")
    with pytest.raises(RequestFailedError, match=r"cannot read .*config\.json: Too many levels"):
        host.sealed().open_spec(str(bundle))
    with pytest.raises(RequestFailedError, match=r"cannot read .*/none/config\.json: No such file"):
        host.sealed().open_spec(str(host.bundle.parent / "none"))


@pytest.mark.parametrize(
    "place",
    [
        "lib/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs",
        "run/io.containerd.runtime.v2.task/k8s.io/pod/rootfs",
        "run/io.containerd.runtime.v2.task/another/app",
        "run/elsewhere/k8s.io/app",
        "run/app",
        "shared",
    ],
)
def test_a_specification_that_a_guest_wrote_is_not_read(host: Host, tmp_path: Path, place: str) -> None:
    """A container writes /config.json into its own root, and says that it is of this sandbox."""
    bundle = tmp_path / place
    bundle.mkdir(parents=True)
    annotations = {"io.kubernetes.cri.sandbox-id": ID}
    (bundle / "config.json").write_text(
        json.dumps({"annotations": annotations, "mounts": [{"source": "/", "type": "bind"}]})
    )
    (bundle / "sandbox").write_text(ID)
    authorization = host.sealed()
    for path in (bundle, f"{host.bundle}/../{ID}/../../../../{place}"):
        with pytest.raises((RequestRefusedError, RequestFailedError), match="cannot read"):
            authorization.open_spec(str(path))
    with pytest.raises(RequestRefusedError):
        check_bind(authorization, "/")


def test_a_link_in_the_place_of_a_bundle_is_not_followed(host: Host, tmp_path: Path) -> None:
    (written := tmp_path / "shared").mkdir()
    (written / "config.json").write_text(json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": ID}}))
    authorization = host.sealed()
    (host.bundle.parent / "app").symlink_to(written)
    with pytest.raises(RequestFailedError, match=r"cannot read .*/app/config\.json: Too many levels"):
        authorization.open_spec(str(host.bundle.parent / "app"))


def found(authorization: Authorization, path: str) -> str:
    """Where the directory is that a sealed sandbox's mount gets for this path."""
    find = authorization.finder("bind", path, [])
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
    for name in ("snap-1", "snap-2"):
        (tmp_path / "pool" / name).mkdir(parents=True)
    authorization = Authorization(str(host.bundle), ID)
    assert authorization.finder("bind", f"{tmp_path}/pool/snap-1", []) is None
    authorization.seal()
    assert found(authorization, f"{tmp_path}/pool/snap-2") == f"{tmp_path}/pool/snap-2"
    with pytest.raises(RequestRefusedError):
        found(authorization, "/dev/null")


def make_fifo(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return str(path)


def open_fifo(authorization: Authorization, path: object) -> None:
    os.close(Streams(authorization).open_fifo(str(path), os.O_RDWR | os.O_NONBLOCK))


def open_log(authorization: Authorization, path: object) -> None:
    os.close(Streams(authorization).open_log(str(path)))


def test_a_specification_is_open_for_its_reader_alone_and_never_blocks(host: Host) -> None:
    later = host.add_bundle("later", annotations={"io.kubernetes.cri.sandbox-id": ID})
    for authorization, bundle in ((Authorization(str(host.bundle), ID), host.bundle), (host.sealed(), later)):
        fd = authorization.open_spec(str(bundle))
        assert (os.get_inheritable(fd), os.get_blocking(fd)) == (False, False)
        os.close(fd)


def test_a_block_device_that_containerd_has_mounted_is_known(host: Host) -> None:
    authorization = Authorization(str(host.bundle), ID)
    assert set(authorization.block_devices) == set()
    authorization.finder("ext4", "/dev/vdz", ["discard"])
    assert set(authorization.block_devices) == {"/dev/vdz"}


@pytest.fixture
def sealed(host: Host, tmp_path: Path) -> Authorization:
    """Of a sandbox whose first container had a FIFO of a client's, and a log."""
    authorization = Authorization(str(host.bundle), ID)
    open_fifo(authorization, make_fifo(tmp_path / "client" / "a" / "stdout"))
    (tmp_path / "log").mkdir()
    open_log(authorization, tmp_path / "log" / "a.log")
    authorization.seal()
    return authorization


def test_streams_are_containerds(host: Host, sealed: Authorization, tmp_path: Path) -> None:
    open_fifo(sealed, make_fifo(host.state / "fifo" / "123" / "app-stdout"))
    open_fifo(sealed, make_fifo(tmp_path / "client" / "b" / "stdout"))
    open_fifo(sealed, make_fifo(host.bundle / "stdout"))
    for name in ("b.log", "b.log", "a.log"):
        open_log(sealed, tmp_path / "log" / name)
    for fifo in (make_fifo(tmp_path / "other"), f"{tmp_path}/client/../other", "/run/initctl"):
        with pytest.raises(RequestRefusedError, match=f"cannot open the FIFO {fifo}: the sandbox is sealed"):
            open_fifo(sealed, fifo)
    for log in (f"{tmp_path}/b.log", f"{tmp_path}/log/../b.log", "/etc/cron.d/x"):
        with pytest.raises(RequestRefusedError, match=f"cannot open the log {log}: the sandbox is sealed"):
            open_log(sealed, log)


def test_a_file_beside_the_log_is_not_the_sandbox_s(sealed: Authorization, tmp_path: Path) -> None:
    """Attack: all pods of the host log into one directory, or the first one's log lies in /var/log."""
    (other := tmp_path / "log" / "another-pod.log").write_text("its own")
    (tmp_path / "var").symlink_to(tmp_path / "log")
    for path in (other, tmp_path / "var" / "another-pod.log"):
        with pytest.raises(RequestRefusedError, match="and the file is there already"):
            open_log(sealed, path)
    other.unlink()
    open_log(sealed, other)
    open_log(sealed, tmp_path / "var" / "another-pod.log")
    (tmp_path / "log" / "a.log").rename(tmp_path / "log" / "a.log.1")  # it is rotated
    (tmp_path / "log" / "a.log").touch()
    open_log(sealed, tmp_path / "log" / "a.log")
    with pytest.raises(RequestRefusedError, match="and the file is there already"):
        open_log(sealed, tmp_path / "log" / "a.log.1")


OURS = {"io.kubernetes.cri.sandbox-id": ID}


def test_the_streams_in_a_later_bundle_are_had_once_its_specification_was_read(host: Host) -> None:
    sealed, later = host.sealed(), host.add_bundle("later", annotations=OURS)
    fifo = make_fifo(later / "stdout")
    with pytest.raises(RequestRefusedError, match="cannot open the FIFO"):
        open_fifo(sealed, fifo)
    read(sealed, later)
    open_fifo(sealed, fifo)


def test_containerds_log_of_the_sandbox_is_no_stream(host: Host) -> None:
    """Who reads it takes from containerd what the broker says there."""
    sealed = host.sealed()
    with pytest.raises(RequestRefusedError, match="cannot open the FIFO"):
        open_fifo(sealed, make_fifo(host.bundle / "log"))
    open_fifo(sealed, make_fifo(host.state / "fifo" / "1" / "log"))


def test_the_file_that_names_the_sandbox_is_closed_again(host: Host) -> None:
    sealed, bundle = host.sealed(), host.add_bundle("app")
    (bundle / "sandbox").write_text(ID)
    os.close(sealed.open_spec(str(bundle)))  # from here on the bundle's directory is held
    before = len(os.listdir("/proc/self/fd"))
    os.close(sealed.open_spec(str(bundle)))
    (bundle / "sandbox").write_text("another")
    with pytest.raises(RequestRefusedError):
        sealed.open_spec(str(bundle))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_sandbox_whose_bundles_are_nowhere_has_none_read(tmp_path: Path) -> None:
    bundle = tmp_path / "nowhere" / "first"
    authorization = Authorization(str(bundle), ID)
    authorization.seal()
    with pytest.raises(RequestRefusedError, match="cannot read the bundle"):
        authorization.open_spec(str(bundle))


def test_streams_of_a_bundle_are_in_it_where_no_containerd_made_it(tmp_path: Path) -> None:
    for name in ("first", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"annotations": OURS}))
    authorization = Authorization(str(tmp_path / "first"), ID)
    authorization.seal()
    fifo = make_fifo(tmp_path / "later" / "stdout")
    with pytest.raises(RequestRefusedError, match="cannot open the FIFO"):
        open_fifo(authorization, fifo)
    read(authorization, tmp_path / "later")
    open_fifo(authorization, fifo)


def test_the_devices_of_a_later_specification_are_given(host: Host) -> None:
    rule = {"allow": True, "type": "b", "major": 7, "minor": 3, "access": "r"}
    later = host.add_bundle("later", annotations=OURS, linux={"resources": {"devices": [rule]}})
    sealed = host.sealed()
    assert not sealed.devices.add_mounted("7:3", write=False)
    read(sealed, later)
    assert sealed.devices.add_mounted("7:3", write=False)


def test_a_specification_that_is_missing_says_so(host: Host) -> None:
    (host.bundle / "config.json").unlink()
    with pytest.raises(RequestFailedError, match="No such file") as failed:
        host.sealed().open_spec(str(host.bundle))
    assert failed.value.errno == errno.ENOENT


def test_a_client_may_name_its_directory_by_a_link(sealed: Authorization, tmp_path: Path) -> None:
    make_fifo(tmp_path / "client" / "b" / "stdout")
    (tmp_path / "var").symlink_to(tmp_path / "client")
    open_fifo(sealed, tmp_path / "var" / "b" / "stdout")


def test_a_link_in_the_place_of_a_stream_is_not_followed(sealed: Authorization, tmp_path: Path) -> None:
    secret = make_fifo(tmp_path / "secret")
    (tmp_path / "client" / "a" / "link").symlink_to(secret)
    (tmp_path / "log" / "link").symlink_to(tmp_path / "secret.log")
    with pytest.raises(RequestRefusedError, match="link is not a FIFO"):
        open_fifo(sealed, tmp_path / "client" / "a" / "link")
    with pytest.raises(RequestRefusedError, match="link is not a regular file"):
        open_log(sealed, tmp_path / "log" / "link")
    assert not (tmp_path / "secret.log").exists()


def test_what_takes_a_name_after_it_was_checked_is_not_opened(
    sealed: Authorization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is swapped for a link between the decision and the opening."""
    (tmp_path / "others").mkdir()
    make_fifo(tmp_path / "others" / "stdout")
    decide = Authorization.fifo_opener

    def decide_and_swap(authorization: Authorization, path: str) -> object:
        opener = decide(authorization, path)
        (tmp_path / "client" / "a").rename(tmp_path / "client" / "moved")
        (tmp_path / "client" / "a").symlink_to(tmp_path / "others")
        return opener

    monkeypatch.setattr(Authorization, "fifo_opener", decide_and_swap)
    with pytest.raises(RequestFailedError, match="Too many levels of symbolic links"):
        open_fifo(sealed, tmp_path / "client" / "a" / "stdout")


def test_a_directory_that_was_learned_is_held(sealed: Authorization, tmp_path: Path) -> None:
    """Another directory of the same name is not the one that containerd gave."""
    (tmp_path / "log").rename(tmp_path / "old")
    (tmp_path / "etc").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "etc")
    with pytest.raises(RequestRefusedError):
        open_log(sealed, tmp_path / "log" / "cron")
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    open_log(sealed, tmp_path / "log" / "b.log")
    assert os.listdir(tmp_path / "etc") == os.listdir(tmp_path / "log") == []
    assert sorted(os.listdir(tmp_path / "old")) == ["a.log", "b.log"]


def test_a_bundle_of_somebody_else_gives_no_directories(tmp_path: Path) -> None:
    (bundle := tmp_path / "bundle").mkdir()
    authorization = Authorization(str(bundle), ID)
    authorization.fifo_opener("/stdout")
    authorization.finder("bind", "/root-of-nobody", [])
    authorization.seal()
    for check in (
        authorization.fifo_opener,
        authorization.log_opener,
        lambda path: found(authorization, path),
    ):
        with pytest.raises(RequestRefusedError):
            check("/anything")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"mounts": 3, "root": []}', '{"mounts": [3, {"source": 4}]}']
)
def test_a_specification_that_is_none_authorizes_nothing(host: Host, text: str) -> None:
    (host.bundle / "config.json").write_text(text)
    authorization = host.sealed()
    os.close(authorization.open_spec(str(host.bundle)))
    with pytest.raises(RequestRefusedError):
        check_bind(authorization, "/etc")


def test_a_directory_in_the_place_of_a_specification_costs_no_descriptor(host: Host) -> None:
    (host.bundle / "config.json").unlink()
    (host.bundle / "config.json").mkdir()
    authorization = host.sealed()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RequestFailedError, match=r"cannot read .*config\.json: Is a directory"):
        authorization.open_spec(str(host.bundle))
    assert os.listdir("/proc/self/fd") == before


# -- FIFOs of containerd's clients, wherever they make them ------------------------------------------------


def make_clients_fifo(path: Path) -> str:
    """As containerd's client makes it."""
    fifo = make_fifo(path)
    os.chmod(fifo, 0o700)
    return fifo


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("run/containerd/fifo/123456789/web-stdout", id="ctr, nerdctl"),
        pytest.param("run/k3s/containerd/fifo/1/web-stdin", id="another state"),
        pytest.param(
            "run/k3s/containerd/io.containerd.grpc.v1.cri/containers/web/io/77/web-stderr", id="CRI"
        ),
        pytest.param("srv/fifos/42/exec-1-stdout", id="ctr --fifo-dir"),
        pytest.param("run/docker/containerd/0a1b/exec-stdin", id="Docker"),
    ],
)
def test_a_clients_fifo_is_opened_wherever_it_is(host: Host, tmp_path: Path, place: str) -> None:
    sealed = host.sealed()
    fifo = make_clients_fifo(tmp_path / "host" / place)  # its directory was made after the seal
    open_fifo(sealed, fifo)
    os.chmod(fifo, 0o600)
    open_fifo(sealed, fifo)
    (tmp_path / "var").symlink_to(tmp_path / "host")  # as /var/run is one to /run
    open_fifo(sealed, tmp_path / "var" / place)


@pytest.mark.parametrize("mode", [0o622, 0o660, 0o606, 0o701])
def test_a_clients_fifo_that_others_may_open_is_refused(host: Host, tmp_path: Path, mode: int) -> None:
    fifo = make_fifo(tmp_path / "1" / "a-stdout")
    os.chmod(fifo, mode)
    before = os.listdir("/proc/self/fd")
    sealed = host.sealed()
    held = os.listdir("/proc/self/fd")
    with pytest.raises(RequestRefusedError, match="it is not root's alone"):
        open_fifo(sealed, fifo)
    assert os.listdir("/proc/self/fd") == held != before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_another_users_fifo_is_refused(host: Host, tmp_path: Path) -> None:
    fifo = make_clients_fifo(tmp_path / "1" / "a-stdout")
    os.chown(fifo, 12345, 12345)
    with pytest.raises(RequestRefusedError, match="it is not root's alone"):
        open_fifo(host.sealed(), fifo)


def test_nothing_but_a_clients_fifo_is_opened(host: Host, tmp_path: Path) -> None:
    sealed = host.sealed()
    other = host.add_bundle("other")
    secret = tmp_path / "secret-stdout"
    secret.write_text("")
    secret.chmod(0o600)
    (tmp_path / "link-stdout").symlink_to(secret)
    for path, why in (
        (make_clients_fifo(tmp_path / "dev" / "initctl"), "the sandbox is sealed"),
        (make_clients_fifo(tmp_path / "sessions" / "4.ref"), "the sandbox is sealed"),
        (make_clients_fifo(tmp_path / "-stdin"), "the sandbox is sealed"),
        (make_clients_fifo(other / "a-stdout"), "the sandbox is sealed"),
        (f"{tmp_path}/dev/../{other.relative_to(tmp_path)}/a-stdout", "the sandbox is sealed"),
        (str(secret), "is not a FIFO"),
        (f"{tmp_path}/link-stdout", "it is not root's alone"),
        (f"{tmp_path}/absent/a-stdout", "No such file"),
    ):
        with pytest.raises((RequestRefusedError, RequestFailedError), match=why):
            open_fifo(sealed, path)


def test_a_link_that_is_put_in_the_way_of_a_clients_fifo_leads_nowhere(host: Host, tmp_path: Path) -> None:
    sealed = host.sealed()
    opener = sealed.fifo_opener(make_clients_fifo(tmp_path / "1" / "a-stdout"))
    (tmp_path / "1").rename(tmp_path / "elsewhere")
    (tmp_path / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        opener(os.O_PATH, 0)


def test_a_link_that_changes_between_two_looks_leads_into_no_other_bundle(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that may write where the path leads through changes it as soon as it was resolved."""
    sealed, other = host.sealed(), host.add_bundle("other")
    make_clients_fifo(other / "a-stdout")
    make_clients_fifo(tmp_path / "volume" / "a-stdout")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "volume")
    resolve = os.path.realpath

    def resolve_and_change(path: Any, **how: Any) -> Any:
        found = resolve(path, **how)
        link.unlink()
        link.symlink_to(other)
        return found

    monkeypatch.setattr(os.path, "realpath", resolve_and_change)
    opener = sealed.fifo_opener(str(link / "a-stdout"))
    found = opener(os.O_PATH, 0)
    try:
        assert os.readlink(f"/proc/self/fd/{found}") == str(tmp_path / "volume" / "a-stdout")
    finally:
        os.close(found)
