"""What apt prints, what apt is given, and how its failures read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kata_runtime.image import command, distribution
from kata_runtime.image.apt import Apt, Package, parse_uris, rename_suite
from kata_runtime.image.errors import OutputError, PackageError, ToolError

LINE = (
    "'http://deb.debian.org/debian/pool/main/b/busybox/busybox-static_1.35.0-4%2bdeb12u1_amd64.deb' "
    f"busybox-static_1%3a1.35.0-4+deb12u1_amd64.deb 928188 SHA256:{'3d' * 32}\n"
)


def test_a_package_is_read_from_its_line() -> None:
    assert parse_uris(LINE) == [
        Package(
            "busybox-static",
            "1:1.35.0-4+deb12u1",
            "busybox-static_1%3a1.35.0-4+deb12u1_amd64.deb",
            928188,
            "3d" * 32,
        )
    ]


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("SHA256", "MD5Sum"),
        LINE.replace("busybox-static_1%3a", "../busybox-static_1%3a"),
        "E: something else\n",
    ],
)
def test_a_line_without_a_strong_hash_or_with_a_path_is_refused(line: str) -> None:
    with pytest.raises(PackageError, match="not a package"):
        parse_uris(line)


@pytest.mark.parametrize(
    ("text", "expected", "deb822"),
    [
        (
            "deb [signed-by=/k/bookworm.gpg] http://mirror/bookworm bookworm-updates main\n",
            "deb [signed-by=/k/bookworm.gpg] http://mirror/bookworm trixie-updates main\n",
            False,
        ),
        ("# deb http://mirror bookworm main\n", "# deb http://mirror bookworm main\n", False),
        ("deb http://other bookwormish main\n", "deb http://other bookwormish main\n", False),
        ("deb http://sec bookworm/updates main\n", "deb http://sec trixie/updates main\n", False),
        (
            "URIs: http://mirror/bookworm\nSuites: bookworm bookworm-updates\nComponents: main\n",
            "URIs: http://mirror/bookworm\nSuites: trixie trixie-updates\nComponents: main\n",
            True,
        ),
    ],
)
def test_a_release_takes_anothers_place_in_suites_only(text: str, expected: str, deb822: bool) -> None:
    assert rename_suite(text, "bookworm", "trixie", deb822=deb822) == expected


NOBLE = "Types: deb\nURIs: http://mirror/ubuntu\nSuites: noble noble-updates\nComponents: main\n"


def test_the_sources_of_another_distribution_take_the_place_of_the_hosts(tmp_path: Path) -> None:
    sources = tmp_path / "ubuntu.sources"
    sources.write_text(NOBLE)
    apt = Apt.of(sources, tmp_path / "cache")
    assert apt.suite == "noble"
    apt._prepare()
    parts = apt.directory / "sources/parts"
    assert {path.name: path.read_text() for path in parts.iterdir()} == {"ubuntu.sources": NOBLE}
    line = tmp_path / "ubuntu.list"
    line.write_text("# none\ndeb [signed-by=/k.gpg] http://mirror/ubuntu jammy main\n")
    other = Apt.of(line, tmp_path / "cache")
    assert other.suite == "jammy"
    assert other.directory != apt.directory


def test_the_lists_say_whose_packages_they_are(tmp_path: Path) -> None:
    sources = tmp_path / "ubuntu.sources"
    sources.write_text(NOBLE)
    apt = Apt.of(sources, tmp_path / "cache")
    apt._prepare()
    lists = apt.directory / "lists/mirror_dists_noble_InRelease"
    lists.write_text("Label: x\n")
    with pytest.raises(PackageError, match="do not say whose they are"):
        apt.origin()
    lists.write_text("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nOrigin: Ubuntu\nSuite: noble\n")
    assert distribution.known(apt.origin(), apt.suite, "x86_64").kernel == "linux-image-virtual"
    lists.write_text("Origin: Plan 9\n")
    with pytest.raises(PackageError, match="cannot make a guest from plan 9 noble on x86_64"):
        distribution.known(apt.origin(), apt.suite, "x86_64")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.sources", None, "cannot read the sources .*No such file"),
        ("sources", NOBLE, "apt reads no sources .*name the file"),
        ("a.sources", "Types: deb\nSuites:\n", "name no release"),
        ("a.list", "# deb http://mirror noble main\n", "name no release"),
    ],
)
def test_sources_that_apt_would_not_read_are_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PackageError, match=message):
        Apt.of(tmp_path / name, tmp_path / "cache")


def test_sources_that_others_may_change_are_refused(tmp_path: Path) -> None:
    """Who writes them names the mirror, and may trust it without a signature: he is root in every guest."""
    (sources := tmp_path / "ubuntu.sources").write_text(NOBLE)
    sources.chmod(0o664)
    with pytest.raises(
        PackageError, match=f"{sources} has the mode 0664, which lets others write: copy them to where"
    ):
        Apt.of(sources, tmp_path / "cache")
    sources.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(
        PackageError, match=f"{tmp_path} has the mode 0777, which lets others put files into it"
    ):
        Apt.of(sources, tmp_path / "cache")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole search path for programs."""
    directory = tmp_path / "tools"
    directory.mkdir()
    monkeypatch.setattr(command, "SEARCH_PATH", f"{directory}:/usr/bin:/bin")
    return directory


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "sources.list").write_text("deb http://mirror bookworm main\n")
    return Apt(tmp_path / "cache", "bookworm", "bookworm", etc)


def package(name: str, content: bytes) -> Package:
    return Package(name, "1", f"{name}_1_all.deb", len(content), hashlib.sha256(content).hexdigest())


def test_a_failed_update_ends_with_apts_own_words(apt: Apt, tools: Path) -> None:
    script(tools / "apt-get", "echo 'E: Could not resolve deb.debian.org' >&2; exit 100")
    with pytest.raises(
        PackageError, match=r"package lists: .*Could not resolve deb.debian.org: check the network"
    ):
        apt.refresh()


def test_an_update_that_fetched_nothing_is_an_error(apt: Apt, tools: Path) -> None:
    script(tools / "apt-get", "exit 0")
    with pytest.raises(PackageError, match=r"no source in .* gave a package list"):
        apt.refresh()


def test_an_unknown_package_is_named(apt: Apt, tools: Path) -> None:
    script(tools / "apt-get", "echo 'E: Unable to locate package crun' >&2; exit 100")
    with pytest.raises(PackageError, match=r"cannot resolve crun: .*Unable to locate"):
        apt.resolve(["crun"])


def test_only_what_is_missing_or_damaged_is_downloaded(apt: Apt, tools: Path, tmp_path: Path) -> None:
    packages = [package("here", b"1"), package("damaged", b"22"), package("absent", b"3")]
    apt.archives.mkdir(parents=True)
    (apt.archives / "here_1_all.deb").write_bytes(b"1")
    (apt.archives / "damaged_1_all.deb").write_bytes(b"x")
    log = tmp_path / "log"
    body = f"""echo "$@" >{log}
    for word in "$@"; do case $word in *Status-Fd=*) fd=${{word#*=}} ;; esac; done
    echo "dlstatus:1:50.0:Retrieving" >/proc/self/fd/$fd
    printf 22 >damaged_1_all.deb; printf 3 >absent_1_all.deb"""
    script(tools / "apt-get", body)
    future: list[float] = []
    apt.fetch(packages, future.append)
    assert log.read_text().split()[-3:] == ["download", "damaged=1", "absent=1"]
    assert future == [0.5, 1.0]
    log.unlink()
    apt.fetch(packages, future.append)
    assert not log.exists()


def test_a_download_of_something_else_is_refused(apt: Apt, tools: Path) -> None:
    apt.archives.mkdir(parents=True)
    script(tools / "apt-get", "printf other >crun_1_all.deb")
    with pytest.raises(PackageError, match=r"crun_1_all\.deb is not what the package lists describe"):
        apt.fetch([package("crun", b"right")], lambda _: None)


def test_a_full_disk_is_said_so(apt: Apt, tools: Path) -> None:
    apt.archives.mkdir(parents=True)
    script(tools / "apt-get", "echo 'E: Write error - write (28: No space left on device)' >&2; exit 100")
    with pytest.raises(OutputError, match="no space left while apt-get download was writing"):
        apt.fetch([package("crun", b"right")], lambda _: None)


def test_no_descriptor_is_left_open(apt: Apt, tools: Path) -> None:
    apt.archives.mkdir(parents=True)
    script(tools / "apt-get", "exit 100")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PackageError):
        apt.fetch([package("crun", b"right")], lambda _: None)
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_answer_depends_on_sources_pins_and_lists(apt: Apt, tmp_path: Path) -> None:
    seen = {apt.fingerprint()}
    for path, text in [
        ("etc/sources.list.d/more.sources", "Types: deb\n"),
        ("etc/preferences", "Package: *\n"),
        ("cache/lists/mirror_InRelease", "Date: today\n"),
        ("cache/lists/mirror_InRelease", "Date: tomorrow\n"),
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        seen.add(apt.fingerprint())
    assert len(seen) == 5


def test_a_missing_tool_names_its_package(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SEARCH_PATH", str(tools))
    with pytest.raises(ToolError, match=r"mkfs\.erofs is not installed: apt-get install erofs-utils"):
        command.run(["mkfs.erofs"])


@pytest.mark.parametrize(
    ("os_release", "machine", "kernel"),
    [
        ('ID=debian\nVERSION_CODENAME="trixie"\n', "x86_64", "linux-image-cloud-amd64"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "aarch64", "linux-image-cloud-arm64"),
        ("NAME='Ubuntu'\nID=ubuntu\nVERSION_CODENAME=noble\n", "x86_64", "linux-image-virtual"),
    ],
)
def test_known_distributions(tmp_path: Path, os_release: str, machine: str, kernel: str) -> None:
    (tmp_path / "os-release").write_text(os_release)
    assert distribution.detect(tmp_path / "os-release", machine).kernel == kernel


@pytest.mark.parametrize("os_release", ["ID=fedora\nVERSION_ID=40\n", "ID=debian\n", ""])
def test_unknown_distributions_are_refused(tmp_path: Path, os_release: str) -> None:
    (tmp_path / "os-release").write_text(os_release)
    with pytest.raises(PackageError, match=r"cannot make a guest from .*: build on one of debian, ubuntu"):
        distribution.detect(tmp_path / "os-release", "x86_64")
    with pytest.raises(PackageError):
        distribution.detect(tmp_path / "absent", "x86_64")
