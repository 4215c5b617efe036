"""The containerds to test with: the system's, and one of the second major version.

The second comes from the directory in KATA_TEST_CONTAINERD2, is the system's own where that is new enough, or
is unpacked from Debian's testing release, beside the system, into a cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.image.apt import Apt
from kata_runtime.image.build_directory import locked
from kata_runtime.image.errors import ImageError

SYSTEM, SECOND = "system", "2.x"
VARIABLE = "KATA_TEST_CONTAINERD2"
CACHE = Path("/var/cache/kata-tests/containerd")
RELEASE = "testing"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NotAvailableError(Exception):
    """This containerd cannot be had here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs of one containerd, and its version, such as (1, 6)."""

    containerd: Path
    ctr: Path
    version: tuple[int, int]


def find(name: str) -> Programs:
    """The programs of SYSTEM or SECOND. Raises NotAvailableError."""
    system = _system()
    if name == SYSTEM:
        return system
    if directory := os.environ.get(VARIABLE):
        return _programs(Path(directory))
    if system.version[0] >= 2:
        return system
    return _fetched()


def _system() -> Programs:
    path = shutil.which("containerd")
    if path is None:
        raise NotAvailableError("containerd is not installed: apt-get install containerd")
    return _programs(Path(path).parent)


def _programs(directory: Path) -> Programs:
    containerd, ctr = directory / "containerd", directory / "ctr"
    for program in (containerd, ctr):
        if not os.access(program, os.X_OK):
            raise NotAvailableError(f"{program} is missing or cannot be executed")
    printed = subprocess.run([containerd, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\sv?(\d+)\.(\d+)\.\d+", printed.stdout)
    if found is None:
        raise NotAvailableError(
            f"{containerd} does not run here: {(printed.stderr or printed.stdout).strip()}"
        )
    return Programs(containerd, ctr, (int(found[1]), int(found[2])))


def _fetched() -> Programs:
    programs = CACHE / "root/usr/bin"
    with locked(CACHE, lambda: None):
        if not (programs / "ctr").exists():
            try:
                _fetch()
            except ImageError as error:
                raise NotAvailableError(
                    f"no containerd 2.x: put one into a directory and name it in {VARIABLE} ({error})"
                ) from error
    return _programs(programs)


def _fetch() -> None:
    apt = Apt(CACHE / "apt", RELEASE, RELEASE, etc=_write_sources(CACHE / "etc"))
    apt.refresh()
    package = next(package for package in apt.resolve(["containerd"]) if package.name == "containerd")
    apt.fetch([package], lambda fraction: None)
    staging = CACHE / "unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", apt.archives / package.file, staging], check=True)
    staging.rename(CACHE / "root")


def _write_sources(etc: Path) -> Path:
    """Apt's configuration directory with one source: the host's own mirror of Debian, another release."""
    printed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (line.split() for line in printed.stdout.splitlines())
    mirrors = [uri for uri, codename in lines if "/debian" in uri and "-" not in codename]
    if not mirrors or not KEYRING.exists():
        raise NotAvailableError(
            f"no containerd 2.x: no source of this host is a Debian mirror; name a directory in {VARIABLE}"
        )
    shutil.rmtree(etc, ignore_errors=True)
    (etc / "sources.list.d").mkdir(parents=True)
    fields = {
        "Types": "deb",
        "URIs": mirrors[0],
        "Suites": RELEASE,
        "Components": "main",
        "Signed-By": KEYRING,
    }
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    (etc / "sources.list.d/testing.sources").write_text(text, encoding="utf-8")
    return etc
