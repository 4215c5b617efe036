"""Direct-assigned volumes: what a registration may say, where it is looked for, and the command for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime import direct_volumes
from kata_runtime.ctl.main import main
from kata_runtime.direct_volumes import DirectVolumeError, directory_of, find, parse

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
    monkeypatch.setattr(direct_volumes, "ROOT", str(tmp_path / "volumes"))
    return tmp_path / "volumes"


def add(info: object = INFO, volume: str = VOLUME) -> int:
    return main(["direct-volume", "add", "--volume-path", volume, "--mount-info", json.dumps(info)])


def test_what_is_registered_is_found_until_it_is_removed(root: Path) -> None:
    assert find(VOLUME) is None
    assert add() == 0
    volume = find(VOLUME)
    assert volume is not None
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
