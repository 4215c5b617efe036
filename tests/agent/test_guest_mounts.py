"""Mount options, the mount table, and what mount points the host may choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.guest import destinations, mounts
from kata_agent.guest.errors import InvalidRequestError


def test_options_are_flags_or_data() -> None:
    assert mounts.parse_options(["ro", "nosuid,nodev", "size=1m", "rw", "mode=755", ""]) == (
        7,
        "size=1m,mode=755",
    )
    assert mounts.parse_options([]) == (0, "")


def test_mountinfo() -> None:
    text = (
        "22 1 0:20 / / rw,relatime - ext4 /dev/vda rw\n"
        r"23 22 0:21 / /with\040space\134and\011tab rw shared:1 - tmpfs tmpfs rw" + "\n"
    )
    assert mounts.parse_mountinfo(text) == {"/", "/with space\\and\ttab"}


@given(st.text())
def test_mountinfo_of_anything_does_not_fail_oddly(text: str) -> None:
    try:
        mounts.parse_mountinfo(text)
    except ValueError:
        pass


def test_own_mounts_have_the_root() -> None:
    assert "/" in mounts.mount_points()


@pytest.mark.parametrize("path", ["/run/kata-containers/x", "/run/kata-containers/shared/containers/"])
def test_mount_points_below_run(path: str) -> None:
    assert mounts.check_target(path, "mount point") == path.rstrip("/")


@pytest.mark.parametrize(
    "path", ["", "/", "/run", "/run/", "/etc", "/run/../etc", "/run/a//b", "run/x", "/run/./x", "/run/a\0b"]
)
def test_other_mount_points(path: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a plain path below /run"):
        mounts.check_target(path, "mount point")


def test_boot_mounts_come_after_what_they_are_in() -> None:
    targets = [entry.target for entry in mounts.BOOT_MOUNTS]
    for index, target in enumerate(targets):
        parents = {str(parent) for parent in Path(target).parents}
        assert not parents & set(targets[index + 1 :])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["/data"], ["/var/lib/data"]),
        (["/data/inner"], ["/var/lib/data/inner"]),
        (["/beside/a//./b/"], ["/etc/none/a/b"]),
        (["/out/x"], ["/tmp/x"]),
        (["/plain/a", "/absent/b", "/file"], ["/plain/a", "/absent/b", "/file"]),
        (["/data", "/data/inner"], ["/var/lib/data", "/var/lib/data/inner"]),
        (["/plain", "/plain/link"], ["/plain", "/plain/link"]),
        (["/plain/link"], ["/absent"]),
        (["/"], ["/"]),
    ],
)
def test_destinations_lead_through_links_and_never_out(
    tmp_path: Path, wanted: list[str], found: list[str]
) -> None:
    for directory in ("plain", "etc", "var/lib"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, target in (
        ("data", "/var/lib/data"),
        ("beside", "etc/none"),
        ("out", "../../../tmp"),
        ("plain/link", "../absent"),
        ("loop", "loop"),
    ):
        (tmp_path / name).symlink_to(target)
    assert destinations.resolve(str(tmp_path), wanted) == found
    with pytest.raises(OSError, match="symbolic links"):
        destinations.resolve(str(tmp_path), ["/loop/x"])
