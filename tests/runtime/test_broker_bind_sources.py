"""What of the host a sealed sandbox may share, and how: as its specifications name it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.broker.bind_sources import BindSources
from kata_runtime.broker.errors import RequestRefusedError

BUNDLE = "/run/bundle"


def sources(*mounts: dict[str, Any], sealed: bool = False, bundle: str = BUNDLE) -> BindSources:
    """Those of one specification."""
    made = BindSources("pod")
    made.learn({"root": {"path": "rootfs"}, "mounts": list(mounts)}, bundle, sealed=sealed)
    return made


def bind(source: object, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "options": list(options)}


def place(made: BindSources, source: object, *, readonly: bool = True, recursive: bool = False) -> str:
    """Where a source is found."""
    fd = made.finder(str(source), readonly=readonly, recursive=recursive, readonly_below=readonly)("")
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "readonly", "recursive", "allowed"),
    [
        (["ro", "rbind"], True, True, True),
        (["ro", "rbind"], True, False, True),
        (["ro", "rbind"], False, True, False),
        (["rw", "rbind"], False, True, True),
        (["rw", "rbind"], True, True, True),
        (["bind"], False, False, True),
        (["bind"], False, True, False),
        ([], False, True, True),
    ],
)
def test_a_source_is_shared_as_it_is_named(
    tmp_path: Path, options: list[str], readonly: bool, recursive: bool, allowed: bool
) -> None:
    made = sources(bind(tmp_path, *options))
    if allowed:
        assert place(made, tmp_path, readonly=readonly, recursive=recursive) == str(tmp_path)
    else:
        with pytest.raises(RequestRefusedError, match=f"cannot share {tmp_path}.*the sandbox is sealed"):
            made.finder(str(tmp_path), readonly=readonly, recursive=recursive, readonly_below=readonly)


def test_each_mount_that_names_it_counts_by_itself(tmp_path: Path) -> None:
    """One read-only and recursive, one writable and not: never writable and recursive."""
    made = sources(bind(tmp_path, "ro", "rbind"), bind(tmp_path, "rw", "bind"))
    assert place(made, tmp_path, readonly=False) == place(made, tmp_path, recursive=True) == str(tmp_path)
    with pytest.raises(RequestRefusedError, match="writable with what is mounted below it"):
        made.finder(str(tmp_path), readonly=False, recursive=True, readonly_below=True)


@pytest.mark.parametrize(
    ("options", "recursive", "readonly_below", "allowed"),
    [
        (["ro", "rbind"], True, False, True),
        (["ro", "rbind"], True, True, True),
        (["rro", "rbind"], True, False, False),
        (["rro", "rbind"], True, True, True),
        (["rro", "rbind"], False, False, True),
    ],
)
def test_what_is_mounted_below_is_writable_only_where_a_mount_says_so(
    tmp_path: Path, options: list[str], recursive: bool, readonly_below: bool, allowed: bool
) -> None:
    made = sources(bind(tmp_path, *options))
    how = {"readonly": True, "recursive": recursive, "readonly_below": readonly_below}
    if allowed:
        os.close(made.finder(str(tmp_path), **how)(""))
    else:
        with pytest.raises(RequestRefusedError, match="with what is mounted below it, writable"):
            made.finder(str(tmp_path), **how)


@pytest.mark.parametrize(
    "mount",
    [
        {"type": "tmpfs", "source": "/etc"},
        {"type": "proc", "source": "/etc", "options": ["nosuid"]},
        {"source": "/etc"},
        {"type": "bind", "source": 7},
        {"type": "bind"},
        {"type": ["bind"], "source": "/etc", "options": "rbind"},
    ],
)
def test_what_is_no_bind_mount_names_nothing(mount: dict[str, Any]) -> None:
    with pytest.raises(RequestRefusedError, match=r"no config\.json of the sandbox pod names it"):
        sources(mount).finder("/etc", readonly=True, recursive=False, readonly_below=True)


def test_where_a_link_led_before_the_seal_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").mkdir()
    link = tmp_path / "link"
    link.symlink_to("data")
    made = sources(bind(link, "rw"))
    link.unlink()
    link.symlink_to("secret")
    assert place(made, link, readonly=False, recursive=True) == str(tmp_path / "data")
    made.learn({"mounts": [bind(link, "rw")]}, BUNDLE, sealed=True)  # a guest has it read again
    assert place(made, link, readonly=False, recursive=True) == str(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "data").symlink_to("secret")
    with pytest.raises(RequestRefusedError, match="a symbolic link is in the way, which a guest may have"):
        place(made, link)


def test_after_the_seal_no_link_leads_to_a_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    made = sources(bind(tmp_path / "link", "rw"), bind(tmp_path / "data", "rw"), sealed=True)
    with pytest.raises(RequestRefusedError, match="name the place that it leads to"):
        place(made, tmp_path / "link")
    assert place(made, f"{tmp_path}/data/") == str(tmp_path / "data")


def test_a_bundle_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """containerd's state directory, /var/run/containerd for example."""
    (tmp_path / "run" / "b" / "rootfs").mkdir(parents=True)
    (tmp_path / "var").symlink_to("run")
    made = sources(sealed=True, bundle=f"{tmp_path}/var/b")
    assert place(made, f"{tmp_path}/var/b/rootfs/", readonly=False, recursive=True).endswith("/run/b/rootfs")


def test_what_is_not_there_or_no_directory_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = sources(bind(tmp_path / "file"), bind(tmp_path / "none"), bind("/"))
    with pytest.raises(NotADirectoryError):
        place(made, f"{tmp_path}/file/")
    with pytest.raises(FileNotFoundError):
        place(made, tmp_path / "none")
    assert place(made, "/") == "/"
