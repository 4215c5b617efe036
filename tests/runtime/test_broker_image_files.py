"""Opening files of an image: what its links do, they do within the image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.images import open_in_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    for name, target in {
        "relative": "etc/file",
        "absolute": "/etc/file",
        "up": "../../../../etc/file",
        "secret": "../secret",
        "host": str(tmp_path / "secret"),
        "process": "/proc/self/root/etc/passwd",
        "loop": "loop",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo")
    return root


def read(root: Path, name: str, *, write: bool = False) -> str:
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with os.fdopen(open_in_image(directory, name, write=write)) as file:
            return file.read()
    finally:
        os.close(directory)


@pytest.mark.parametrize("name", ["etc/file", "/etc/file", "../../etc/file", "relative", "absolute", "up"])
def test_a_path_stays_in_the_image(image: Path, name: str) -> None:
    assert read(image, name) == "inside"


@pytest.mark.parametrize("name", ["secret", "host", "../secret", "process", "loop", "none", "etc/file/x"])
def test_what_is_not_in_the_image_is_not_there(image: Path, name: str) -> None:
    with pytest.raises(RequestFailedError, match=f"cannot open {name} in the image: "):
        read(image, name)


@pytest.mark.parametrize("name", ["etc", "fifo", "/"])
def test_what_is_no_file_is_refused(image: Path, name: str) -> None:
    with pytest.raises(RequestRefusedError, match="is neither a regular file nor a block device"):
        read(image, name)


def test_a_file_for_writing(image: Path) -> None:
    directory = os.open(image, os.O_PATH | os.O_DIRECTORY)
    descriptor = open_in_image(directory, "absolute", write=True)
    os.pwrite(descriptor, b"IN", 0)
    os.close(descriptor)
    os.close(directory)
    assert (image / "etc" / "file").read_text() == "INside"
