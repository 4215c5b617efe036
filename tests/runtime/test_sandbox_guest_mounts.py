"""What the configuration shares with the guest itself (sandbox_bind_mounts)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kata_configuration.bind_mount import BindMount
from kata_runtime.container.process import Container, Process
from kata_runtime.errors import InvalidRequestError, SandboxError
from kata_runtime.resource.shares import Shares, share_with_guest
from kata_runtime.stdio.files import StdioPaths


class Broker:
    """Notes what it is to bind."""

    def __init__(self) -> None:
        self.bound: list[tuple[str, str, bool]] = []

    async def bind(self, source: str, target: str, *, readonly: bool) -> None:
        self.bound.append((source, target, readonly))


async def share(*entries: str) -> list[tuple[str, str, bool]]:
    broker: Any = Broker()
    await share_with_guest(broker, "/shared", [BindMount.parse(entry) for entry in entries])
    bound: list[tuple[str, str, bool]] = broker.bound
    return bound


async def test_each_is_shared_by_its_last_name_and_written_only_where_it_says_so(tmp_path: Path) -> None:
    for name in ("plain", "read", "written"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    entries = [f"{tmp_path}/plain", f"{tmp_path}/read:ro", f"{tmp_path}/written:rw", f"{tmp_path}/file"]
    assert await share(*entries) == [
        (f"{tmp_path}/plain", "/shared/sandbox-mounts/plain", True),
        (f"{tmp_path}/read", "/shared/sandbox-mounts/read", True),
        (f"{tmp_path}/written", "/shared/sandbox-mounts/written", False),
        (f"{tmp_path}/file", "/shared/sandbox-mounts/file", True),
    ]


async def test_a_source_that_is_missing_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        SandboxError, match=f"cannot share {tmp_path}/absent .* sandbox_bind_mounts .* No such"
    ):
        await share(f"{tmp_path}/absent")


async def test_a_source_that_means_nothing_in_the_guest_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for source in (str(tmp_path / "fifo"), "/dev/null"):
        with pytest.raises(SandboxError, match=f"cannot share {source} .* neither a directory nor a file"):
            await share(source)


@pytest.mark.parametrize(
    "text", ["", "/", "a", "/a/", "//a", "/a/../b", "/a/..", "/./a", "/a:", "/a:rx", "/a:ro:rw", "/a:b:ro"]
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        BindMount.parse(text)


@pytest.mark.parametrize("text", ["/a", "/a/..b", "/a.b/.c:ro", "/a b:rw"])
def test_what_is_an_entry_has_the_last_name_of_its_path(text: str) -> None:
    mount = BindMount.parse(text)
    assert text.startswith(mount.source)
    assert mount.source.endswith(f"/{mount.name}")
    assert mount.readonly == (not text.endswith(":rw"))


async def test_no_container_has_the_name_of_their_directory() -> None:
    container = Container("sandbox-mounts", "/bundle", {}, Process("sandbox-mounts", "", StdioPaths(), {}))
    shares = Shares(Broker(), "/shared")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="give the container another id"):
        await shares.share(container, ())
