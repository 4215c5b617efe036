"""A container image: a distribution's packages, unpacked without their scripts, and trees of this host."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/quickstart"))

import like_runc_sources
from kata_runtime.image import distribution
from kata_runtime.image.apt import Apt
from kata_runtime.image.build_directory import locked
from kata_runtime.image.errors import ToolError
from like_runc_suites import BASE, Suite
from oci_archive import write_archive

CACHE = Path("/var/cache/kata-tests/like-runc")
NAME = "localhost/kata-tests/like-runc:1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Directories that the distributions keep as links into /usr; packages may still name them."""
ALTERNATIVES = {"usr/bin/awk": "mawk", "usr/bin/sh": "dash", "usr/bin/python3": "python3.11"}
"""Links that packages' scripts would make."""
DIRECTORIES = {"tmp": 0o1777, "var/tmp": 0o1777, "dev": 0o755, "etc": 0o755, "run": 0o755}
FILES = {
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def write(archive: Path, suites: Sequence[Suite]) -> None:
    """Write the image in which suites run.

    Raises:
        ImageError: packages cannot be had, or a suite cannot be built.
    """
    with locked(CACHE, lambda: None):
        root = CACHE / "root"
        shutil.rmtree(root, ignore_errors=True)
        _unpack(suites, root)
        _complete(root)
        for suite in suites:
            _add(suite, root)
        write_archive(archive, NAME, _layer(root), {"Env": [f"PATH={PATH}"], "Cmd": ["sh"]})
        shutil.rmtree(root)


def _add(suite: Suite, root: Path) -> None:
    for place, name in suite.trees.items():
        tree = Path(os.environ[name])
        shutil.copytree(tree, root / place.lstrip("/"), symlinks=True, dirs_exist_ok=True)
    if suite.source:
        (root / "suites").mkdir(exist_ok=True)
        like_runc_sources.unpack(suite.source, CACHE / "sources", root / "suites" / suite.name)
    if suite.build:
        _build(suite, root)


def _build(suite: Suite, root: Path) -> None:
    # In mounts of its own, which end with it: tools want /dev/null.
    inside = f"cd /suites/{suite.name} && set -e\n{suite.build}"
    script = 'mount --rbind /dev "$0/dev" && exec chroot "$0" bash -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, str(root), inside]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={"PATH": PATH}
    )
    if done.returncode:
        raise ToolError(f"cannot build {suite.name}: {done.stderr.strip() or done.returncode}")


def _unpack(suites: Sequence[Suite], root: Path) -> None:
    host = distribution.detect()
    apt = Apt(CACHE / "apt", host.codename, host.codename)
    if not apt.has_lists():
        apt.refresh()
    names = {*BASE, *(name for suite in suites for name in (*suite.packages, *suite.tools))}
    found = apt.resolve(sorted(names))
    if alone := {name for suite in suites for name in suite.alone}:
        found = [*found, *(one for one in apt.resolve(sorted(alone)) if one.name in alone)]
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
    for name, mode in DIRECTORIES.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
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
