"""A container image: a distribution's packages, unpacked without their scripts, and trees of this host."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/quickstart"))

from kata_runtime.image import distribution
from kata_runtime.image.apt import Apt
from kata_runtime.image.build_directory import locked
from oci_archive import write_archive

CACHE = Path("/var/cache/kata-tests/like-runc")
NAME = "localhost/kata-tests/like-runc:1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Directories that the distributions keep as links into /usr; packages may still name them."""
ALTERNATIVES = {"usr/bin/awk": "mawk", "usr/bin/sh": "dash", "usr/bin/python3": "python3.11"}
"""Links that packages' scripts would make."""
FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def write(archive: Path, packages: Iterable[str], trees: Mapping[str, Path]) -> None:
    """Write the image. trees: what of this host is at which place in it.

    Raises:
        ImageError: the packages cannot be had.
    """
    with locked(CACHE, lambda: None):
        root = CACHE / "root"
        shutil.rmtree(root, ignore_errors=True)
        _unpack(packages, root)
        _complete(root)
        for place, tree in trees.items():
            shutil.copytree(tree, root / place.lstrip("/"), symlinks=True, dirs_exist_ok=True)
        write_archive(archive, NAME, _layer(root), {"Env": [f"PATH={PATH}"], "Cmd": ["sh"]})
        shutil.rmtree(root)


def _unpack(packages: Iterable[str], root: Path) -> None:
    host = distribution.detect()
    apt = Apt(CACHE / "apt", host.codename, host.codename)
    if not apt.has_lists():
        apt.refresh()
    found = apt.resolve(sorted(packages))
    apt.fetch(found, lambda fraction: None)
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in found:
        content = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", apt.archives / package.file], stdout=subprocess.PIPE, check=True
        )
        command = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
        subprocess.run(command, input=content.stdout, check=True)


def _complete(root: Path) -> None:
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for name, text in FILES.items():
        (root / name).write_text(text)
    for name, target in ALTERNATIVES.items():
        if not os.path.lexists(root / name) and (root / "usr/bin" / target).exists():
            (root / name).symlink_to(target)
    for library in root.glob("usr/lib/python3.*"):
        command = ["chroot", str(root), "python3", "-m", "compileall", "-q", f"/usr/lib/{library.name}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _layer(root: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name)
    return buffer.getvalue()
