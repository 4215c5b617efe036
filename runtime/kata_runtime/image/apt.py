"""What the guest's packages are today, and the files of them, by the host's own apt.

Apt runs with the host's sources, or those of another distribution, and with the host's keyrings, pins and
proxies, but with a state of its own in the cache: an empty dpkg status, so that nothing counts as installed,
and package lists of its own, so that the host's stay as they are. The network is touched only when something
must be downloaded.

Source: apt-get(8), --print-uris; apt.conf(5); apt's README.progress-reporting for the status lines.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from kata_runtime.image import command, trusted
from kata_runtime.image.errors import OutputError, PackageError, ToolError

ETC = Path("/etc/apt")
URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>[^ /]+\.deb) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
STATUS_LINE = re.compile(rb"dlstatus:\d+:([\d.]+):")
ONE_LINE_SOURCE = re.compile(r"^(\s*deb\s+(?:\[[^\]]*\]\s+)?\S+\s+)(\S+)", re.MULTILINE)
SUFFIXES = (".list", ".sources")
ORIGIN = re.compile(r"^Origin: *(\S.*?) *$", re.MULTILINE)
SUITES_FIELD = re.compile(r"^(Suites:)(.*(?:\n[ \t].*)*)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package file: its name and version, the name under which apt saves it, its size and SHA-256."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


class Apt:
    """The host's apt with a state of its own.

    directory: where state and downloaded packages live; nothing else may be in it.
    codename: the host's release. suite: the release to take packages from; when it differs, it takes the
    place of the host's release in the host's sources. sources: a file of apt's, named as apt wants it, in
    place of the host's sources.
    """

    def __init__(
        self, directory: Path, codename: str, suite: str, etc: Path = ETC, sources: Path | None = None
    ) -> None:
        self.directory = directory
        self.archives = directory / "archives"
        self._lists = directory / "lists"
        self._sources = directory / "sources"
        self.suite = suite
        self._rename = (codename, suite)
        self._etc = etc
        self._given = sources

    @classmethod
    def of(cls, sources: Path, cache: Path) -> Apt:
        """Return the apt of another distribution, whose first release in its sources is the guest's.

        sources: of the form of apt's *.sources or *.list. cache: of all builds.

        Raises:
            PackageError: apt would not read the file, it names no release, or others may change it.
        """
        try:
            with sources.open(encoding="utf-8") as file:
                fault, text = trusted.fault_of(sources, os.fstat(file.fileno())), file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise PackageError(f"cannot read the sources {sources}: {reason}") from error
        if fault is not None:
            raise PackageError(f"cannot use the sources {sources}: {fault}: copy them to where root writes")
        if sources.suffix not in SUFFIXES:
            raise PackageError(f"apt reads no sources {sources}: name the file *.sources or *.list")
        suite = first_suite(text, deb822=sources.suffix == ".sources")
        if suite is None:
            raise PackageError(
                f"the sources {sources} name no release: give it as Suites: (*.sources) or after the address"
            )
        return cls(cache / hashlib.sha256(text.encode()).hexdigest()[:16], suite, suite, sources=sources)

    def origin(self) -> str:
        """Return the distribution that signed the package lists, in lower case, such as "ubuntu".

        Raises:
            PackageError: no list says it.
        """
        for path in sorted(self._lists.glob("*Release")):
            if match := ORIGIN.search(path.read_text(encoding="utf-8", errors="replace")):
                return match[1].lower()
        raise PackageError("the package lists do not say whose they are (Origin:): give other --sources")

    def fingerprint(self) -> str:
        """Return a hash of everything that decides what a package's name means: sources, pins, lists."""
        digest = hashlib.sha256(repr(self._rename).encode())
        for path in [*self._configuration_files(), *sorted(self._lists.glob("*Release"))]:
            digest.update(str(path.name).encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()

    def has_lists(self) -> bool:
        """Whether package lists were ever fetched."""
        return any(self._lists.glob("*Release"))

    def refresh(self) -> None:
        """Fetch the package lists. Raises PackageError when no source answers."""
        self._prepare()
        try:
            command.run(["apt-get", *self._options(), "update", "-qq"])
        except ToolError as error:
            raise PackageError(
                f"cannot fetch the package lists: {error}: check the network and {self._etc}"
            ) from error
        if not self.has_lists():
            raise PackageError(
                f"no source in {self._etc} gave a package list: check the network and the sources"
            )

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """Return the packages that installing these on an empty system takes, without recommendations.

        Raises:
            PackageError: one is unknown to the sources, or they do not fit together.
        """
        self._prepare()
        arguments = ["install", "--print-uris", "-qq", "-y", "--no-install-recommends", *names]
        try:
            output = command.run(["apt-get", *self._options(), *arguments]).decode()
        except ToolError as error:
            raise PackageError(
                f"cannot resolve {', '.join(names)}: {error}: add the component that has it to {self._etc}"
            ) from error
        return sorted(parse_uris(output))

    def fetch(self, packages: Iterable[Package], advance: Callable[[float], None]) -> None:
        """Download what is not there yet; apt verifies signatures and hashes, and we verify what was there.

        advance: called with the fraction done, 0 to 1.

        Raises:
            PackageError: something cannot be downloaded; the message ends with apt's last lines.
        """
        missing = self.missing(packages)
        if missing:
            self._download(missing, advance)
        if damaged := self.missing(missing):
            raise PackageError(
                f"{damaged[0].file} is not what the package lists describe: build again with --force"
            )
        advance(1.0)

    def missing(self, packages: Iterable[Package]) -> list[Package]:
        """Return the packages whose file is absent or not what the package lists say."""
        return [package for package in packages if _sha256(self.archives / package.file) != package.sha256]

    def _download(self, packages: Sequence[Package], advance: Callable[[float], None]) -> None:
        for package in packages:
            (self.archives / package.file).unlink(missing_ok=True)
        wanted = [f"{package.name}={package.version}" for package in packages]
        read, write = os.pipe()
        options = [*self._options(), "-qq", "-o", f"APT::Status-Fd={write}", "-o", "Acquire::Retries=3"]
        with open(read, "rb") as status:
            try:
                process = subprocess.Popen(
                    [command.find("apt-get"), *options, "download", *wanted],
                    cwd=self.archives,
                    env=command.environment(),
                    pass_fds=[write],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            finally:
                os.close(write)
            with process:
                for line in status:
                    if match := STATUS_LINE.match(line):
                        advance(float(match[1]) / 100)
                _, errors = process.communicate()
        if process.returncode:
            raise _download_error(process.returncode, errors)

    def _prepare(self) -> None:
        for name in ("lists/partial", "archives", "cache/archives/partial", "state"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "state/status").touch()
        shutil.rmtree(self._sources, ignore_errors=True)
        (self._sources / "parts").mkdir(parents=True)
        for path in self._source_files():
            text = rename_suite(
                path.read_text(encoding="utf-8"), *self._rename, deb822=path.suffix == ".sources"
            )
            (self._sources / "parts" / path.name).write_text(text, encoding="utf-8")

    def _source_files(self) -> list[Path]:
        if self._given is not None:
            return [self._given]
        parts = [path for path in (self._etc / "sources.list.d").glob("*") if path.suffix in SUFFIXES]
        return [path for path in [self._etc / "sources.list", *sorted(parts)] if path.is_file()]

    def _configuration_files(self) -> list[Path]:
        pins = [self._etc / "preferences", *sorted((self._etc / "preferences.d").glob("*"))]
        return [*self._source_files(), *(path for path in pins if path.is_file())]

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc": self._etc,
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self._sources / "parts",
            "Dir::State": self.directory / "state",
            "Dir::State::status": self.directory / "state/status",
            "Dir::State::lists": self._lists,
            "Dir::Cache": self.directory / "cache",  # stays empty: apt lists only what it has not got
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "",  # the user that apt would change to cannot write our directories
            "APT::Update::Post-Invoke-Success::": "",
        }
        return [option for key, value in settings.items() for option in ("-o", f"{key}={value}")]


def parse_uris(output: str) -> list[Package]:
    """Return the packages that `apt-get install --print-uris` lists.

    Raises:
        PackageError: a line is not what we know, such as one without a SHA-256.
    """
    packages = []
    for line in output.splitlines():
        match = URI_LINE.match(line)
        if match is None:
            raise PackageError(f"apt printed a line that is not a package: {line[:200]!r}")
        name, version, _ = (unquote(part) for part in match["file"].split("_", 2))
        packages.append(Package(name, version, match["file"], int(match["size"]), match["sha256"]))
    return packages


def rename_suite(text: str, codename: str, suite: str, *, deb822: bool) -> str:
    """Return sources with one release in place of another: bookworm-updates becomes trixie-updates."""
    suite_name = re.compile(rf"(?<!\S){re.escape(codename)}(?=[-/\s]|$)")
    if deb822:
        return SUITES_FIELD.sub(lambda field: field[1] + suite_name.sub(suite, field[2]), text)
    return ONE_LINE_SOURCE.sub(lambda line: line[1] + suite_name.sub(suite, line[2]), text)


def first_suite(text: str, *, deb822: bool) -> str | None:
    """Return the first release that sources name: noble, where they say noble and noble-updates."""
    match = (SUITES_FIELD if deb822 else ONE_LINE_SOURCE).search(text)
    words = match[2].split() if match else []
    return words[0] if words else None


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _download_error(status: int, errors: bytes) -> PackageError | OutputError:
    error = command.failure("apt-get download", status, errors)
    if isinstance(error, OutputError):
        return error
    return PackageError(
        f"cannot download the guest's packages: {error}: check the network, or build with --force"
    )
