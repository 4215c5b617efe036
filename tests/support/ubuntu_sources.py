"""Apt's sources for Ubuntu on a host that is another distribution, from what Debian's packages say of it.

Debian has Ubuntu's keys in a package, and debootstrap, which sets up either, knows the archive's address.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from kata_runtime.image.apt import Apt
from kata_runtime.image.errors import PackageError

KEYS_RELEASE = "trixie"
"""Bookworm, the release before it, has no package of the keys."""
SUITE = "noble"
_MIRROR = re.compile(r"default_mirror (http\S+)")
_KEYRING = "usr/share/keyrings/ubuntu-archive-keyring.gpg"
_SCRIPT = "usr/share/debootstrap/scripts/gutsy"
_PACKAGES = ("debootstrap", "ubuntu-keyring")


def write(directory: Path, codename: str, cache: Path) -> Path:
    """Write the sources and the keys into a directory; returns the path of the sources.

    codename: the host's release of Debian. cache: of image builds.

    Raises:
        PackageError: Debian's packages cannot be had, or do not have it.
    """
    apt = Apt(cache / KEYS_RELEASE, codename, KEYS_RELEASE)
    if not apt.has_lists():
        apt.refresh()
    packages = [one for one in apt.resolve(_PACKAGES) if one.name in _PACKAGES]
    apt.fetch(packages, lambda fraction: None)
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", apt.archives / package.file, directory], check=True)
    match = _MIRROR.search((directory / _SCRIPT).read_text(encoding="utf-8"))
    if match is None:
        raise PackageError(f"{_SCRIPT} of debootstrap names no archive")
    sources = directory / "ubuntu.sources"
    fields = {
        "Types": "deb",
        "URIs": match[1],
        "Suites": f"{SUITE} {SUITE}-updates",
        "Components": "main universe",
        "Signed-By": str(directory / _KEYRING),
    }
    sources.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()), encoding="utf-8")
    return sources
