"""Direct-assigned volumes: what a registration may say, where it is looked for, and the command for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from forked import in_child
from kata_runtime import direct_volumes, syscalls
from kata_runtime.broker import source_facts, volumes
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.ctl.main import main
from kata_runtime.direct_volumes import DirectVolumeError, directory_of, find, parse, registered

INFO: dict[str, Any] = {
    "volume-type": "block",
    "device": "/dev/sdf",
    "fstype": "ext4",
    "options": ["ro", "noatime"],
    "metadata": {"fsGroup": "1000", "fsGroupChangePolicy": "OnRootMismatch"},
}
VOLUME = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/data/mount"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where volumes are registered, in place of the host's."""
    monkeypatch.setattr(direct_volumes, "SYSTEM", str(tmp_path))
    monkeypatch.setattr(direct_volumes, "ROOT", str(tmp_path / "runtime" / "volumes"))
    return tmp_path / "runtime" / "volumes"


def add(info: object = INFO, volume: str = VOLUME) -> int:
    return main(["direct-volume", "add", "--volume-path", volume, "--mount-info", json.dumps(info)])


def test_what_is_registered_is_found_until_it_is_removed(root: Path) -> None:
    assert find(VOLUME) is None
    assert add() == 0
    registration = find(VOLUME)
    assert registration is not None
    volume, file = registration
    assert os.path.samestat(file, os.stat(f"{directory_of(VOLUME)}/mountInfo.json"))
    assert (volume.device, volume.fstype, volume.readonly) == ("/dev/sdf", "ext4", True)
    assert (volume.options, volume.group, volume.on_mismatch) == (["ro", "noatime"], 1000, True)
    assert find(f"{VOLUME}/below") is None
    assert main(["direct-volume", "remove", "--volume-path", VOLUME]) == 0
    assert find(VOLUME) is None
    assert list(root.iterdir()) == []


def test_it_is_where_other_tools_put_it(root: Path) -> None:
    """The name is the path in base64 with the alphabet for URLs."""
    assert directory_of("/a?>") == f"{root}/L2E_Pg=="
    assert all(os.path.dirname(directory_of(f"/{chr(code)}")) == str(root) for code in range(32, 0x250))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"volume-type": "vfiovol"}, "the volume-type 'vfiovol'; there are directvol, block"),
        ({"fstype": "btrfs"}, "the fstype 'btrfs'; there are ext4, xfs"),
        ({"fstype": ["ext4"]}, "the fstype"),
        ({"device": "/etc/shadow"}, "which is no path below /dev"),
        ({"device": None}, "which is no path below /dev"),
        ({"device": "/dev/a\0b"}, "which is no path below /dev"),
        ({"device": "/dev/\ud800"}, "which is no path below /dev"),
        ({"options": "ro"}, "no list of at most 32 mount options"),
        ({"options": [1]}, "no list of at most 32 mount options"),
        ({"options": ["a,b"]}, "no list of at most 32 mount options"),
        ({"options": ["x"] * 33}, "no list of at most 32 mount options"),
        ({"metadata": {"fsGroup": "-1"}}, "no fsGroup and fsGroupChangePolicy"),
        ({"metadata": {"fsGroup": "4294967295"}}, "no fsGroup and fsGroupChangePolicy"),
        ({"metadata": {"fsGroupChangePolicy": "Never"}}, "no fsGroup and fsGroupChangePolicy"),
        ({"metadata": {"fsGroupChangePolicy": []}}, "no fsGroup and fsGroupChangePolicy"),
        ({"metadata": [1]}, "no fsGroup and fsGroupChangePolicy"),
        ({"more": 1}, "the key 'more', which means nothing here"),
    ],
)
def test_what_cannot_be_is_refused_and_not_registered(
    root: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], sentence: str
) -> None:
    assert add({**INFO, **change}) == 1
    assert sentence in capsys.readouterr().err
    assert not root.exists()
    with pytest.raises(DirectVolumeError, match=r"^it has "):
        parse(json.dumps({**INFO, **change}).encode(), "it")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 60_000, b"\xff", b" " * (1 << 17)])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(DirectVolumeError, match="is no JSON object of at most 65536 bytes"):
        parse(content, "it")


def test_a_path_that_no_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/" + "a" * 191, "relative", ""):
        assert find(path) is None
        assert add(volume=path) == 1
        assert "is no absolute path of at most 189 bytes" in capsys.readouterr().err
    assert find("/" + "a" * 188) is None


def test_what_was_not_registered_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["direct-volume", "remove", "--volume-path", VOLUME]) == 1
    assert f"{VOLUME} is not registered" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o622, 0o660, 0o602])
def test_a_registration_that_others_may_write_is_refused(mode: int) -> None:
    add()
    Path(directory_of(VOLUME), direct_volumes.FILE).chmod(mode)
    with pytest.raises(DirectVolumeError, match="is not a file that root alone writes to"):
        find(VOLUME)


def test_a_registration_that_is_a_link_is_refused(tmp_path: Path) -> None:
    add()
    file = Path(directory_of(VOLUME), direct_volumes.FILE)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DirectVolumeError, match="cannot read the registration of "):
        find(VOLUME)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_place_where_others_may_move_registrations_is_refused(root: Path, depth: int) -> None:
    """Attack: a local user renames another pod's registration, which is root's, to the path of his."""
    victim = "/var/lib/kubelet/pods/2/volumes/kubernetes.io~csi/secret/mount"
    add(volume=victim)
    place = [Path(directory_of(victim)), root, root.parent][depth]
    place.chmod(0o777)
    Path(directory_of(victim)).rename(directory_of(VOLUME))
    with pytest.raises(DirectVolumeError, match=r"/\S+ is not a directory that root alone writes to"):
        find(VOLUME)
    if depth:
        place.chmod(0o1777)
        assert find(VOLUME) is not None  # nobody but root moves what is root's


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("depth", [0, 1])
def test_a_place_of_somebody_else_s_is_refused(root: Path, depth: int) -> None:
    add()
    os.chown([directory_of(VOLUME), str(root)][depth], 1, 1)
    with pytest.raises(DirectVolumeError, match="is not a directory that root alone writes to"):
        find(VOLUME)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_link_on_the_way_is_refused(root: Path, tmp_path: Path, depth: int) -> None:
    add()
    place = [Path(directory_of(VOLUME)), root][depth]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DirectVolumeError, match="cannot read the registration of "):
        find(VOLUME)


def test_the_umask_of_a_driver_opens_nothing_to_others(root: Path) -> None:
    """A kubelet's is 0, and what it starts has that too."""
    before = os.umask(0)
    try:
        assert add() == 0
    finally:
        os.umask(before)
    assert find(VOLUME) is not None
    assert [path for path in root.parent.rglob("*") if path.stat().st_mode & 0o022] == []


def test_what_is_registered_is_told(root: Path) -> None:
    assert registered() == []
    for volume in (VOLUME, "/a?>\udcff"):
        add(volume=volume)
    (root / "no base64").mkdir()
    assert sorted(registered()) == sorted([VOLUME, "/a?>\udcff"])


def refuse(source: Path) -> None:
    """What is done about a source that is not registered itself."""
    place = os.open(source, os.O_PATH)
    try:
        volumes._refuse_part(str(source), source_facts.look(place, recursive=True))
    finally:
        os.close(place)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory that stands for a device, with one in it, as a kubelet makes it for a subPath."""
    (volume := tmp_path / "pods/1/da ta/mount").mkdir(parents=True)
    (volume / "part").mkdir()
    for path in (volume, tmp_path / "pods/2/mount"):
        add(volume=str(path))
    return volume


def test_a_part_of_a_volume_that_is_a_device_is_refused(volume: Path) -> None:
    """On the host there is an empty directory: what a container wrote there would not be in the volume."""
    for source in (volume, volume / "part"):
        with pytest.raises(RequestFailedError, match=f"^{source} lies in {volume}, which stands for a block"):
            refuse(source)


def test_what_is_beside_a_volume_or_above_it_is_not(volume: Path, tmp_path: Path) -> None:
    for source in (volume.with_name("mount2"), volume.with_name("other") / "mount"):
        source.mkdir(parents=True)
        refuse(source)
    refuse(volume.parent)
    refuse(Path("/proc/self"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount needs root")
def test_a_volume_is_known_by_another_path_too(volume: Path, tmp_path: Path) -> None:
    """A kubelet mounts the directory of a subPath elsewhere, and the CRI names no source by a link."""

    def attack() -> None:
        syscalls.unshare_mounts()
        (target := tmp_path / "volume-subpaths").mkdir()
        syscalls.mount(str(volume / "part"), str(target), flags=0x1000)
        refuse(target)

    with pytest.raises(RequestFailedError, match=f"volume-subpaths lies in {volume}"):
        in_child(attack)
    (tmp_path / "pods").rename(tmp_path / "real")
    (tmp_path / "pods").symlink_to("real")
    with pytest.raises(RequestFailedError, match=f"^{tmp_path}/real/1/da ta/mount lies in {volume}"):
        refuse(tmp_path / "real/1/da ta/mount")
