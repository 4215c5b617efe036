"""The whole of an image build: resolve, fetch, make, replace; or find that nothing has changed."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Protocol

from kata_runtime.image import (
    command,
    distribution,
    initramfs,
    manifest,
    modules,
    rootfs,
    sbom,
    trusted,
    verity,
)
from kata_runtime.image.agent import Agent
from kata_runtime.image.apt import Apt, Package
from kata_runtime.image.build_directory import build_directory, locked, publish
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.distribution import Distribution
from kata_runtime.image.errors import OutputError
from kata_runtime.image.kernel import Kernel
from kata_runtime.image.manifest import Artifact, Manifest
from kata_runtime.image.rootfs import GuestAgent
from kata_runtime.image.tree import Tree

DEFAULT_OUTPUT = Path("/var/lib/kata-containers/image")
DEFAULT_CACHE = Path("/var/cache/kata-containers/image")
KERNEL, INITRAMFS, IMAGE = "vmlinuz", "kata-initrd.img", "kata-image.erofs"
VERITY_INITRAMFS = "kata-initrd-verity.img"
ARTIFACTS = (KERNEL, INITRAMFS, VERITY_INITRAMFS, IMAGE)
PLAN = "plan.json"


class Progress(Protocol):
    """Receives the progress of a build."""

    def step(self, title: str) -> None:
        """A step starts; the one before it is done."""

    def advance(self, fraction: float) -> None:
        """This much of the step is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The packages to use: the guest's, its Python's, the machine's, and what checks the root file system."""

    guest: list[Package]
    python: list[Package]
    boot: list[Package]
    verity: list[Package]

    @property
    def packages(self) -> list[Package]:
        """Every package once."""
        return sorted({*self.root, *self.boot, *self.verity})

    @property
    def root(self) -> list[Package]:
        """Those of the guest's root file system."""
        return sorted({*self.guest, *self.python})

    def fitting(self, agent: GuestAgent) -> Plan:
        """Return what an image with this agent is made of."""
        return self if agent.needs_python else replace(self, python=[])


@dataclass(frozen=True, slots=True)
class Build:
    """An image to make.

    output: the directory that becomes the image. cache: downloads and package lists, shared by builds.
    suite: the release to take packages from, None for the host's. sources: another distribution's, in a file
    of apt's that names its release too, in place of the host's and of `suite`. force: fetch the package lists
    and build even when nothing changed. agent: the guest's.
    """

    output: Path = DEFAULT_OUTPUT
    cache: Path = DEFAULT_CACHE
    suite: str | None = None
    force: bool = False
    agent: GuestAgent = field(default_factory=Agent.installed)
    sources: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a build came to. built: False when the image was up to date."""

    manifest: Manifest
    built: bool


def build(request: Build, progress: Progress) -> Outcome:
    """Bring the image up to date.

    Raises:
        ImageError: see errors.py; the output is as it was.
    """
    with _explained(request), locked(request.cache, lambda: progress.step("waiting for another build")):
        # It says which packages there are, and by which hashes they are known.
        if fault := trusted.fault_of(request.cache, request.cache.stat()):
            raise OutputError(
                f"cannot use the cache {request.cache}: {fault}: mend that, or choose another --cache"
            )
        apt, made_of = _archive(request, progress)
        plan = None if request.force else _known_plan(apt, made_of.kernel)
        plan = plan and plan.fitting(request.agent)
        if plan is not None and (current := _up_to_date(request, plan)):
            return Outcome(current, built=False)
        output = request.output.absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
        with build_directory(output, lambda: progress.step("waiting for another build")) as scratch:
            return Outcome(_make(request, apt, plan, made_of, scratch, output, progress), built=True)


def _archive(request: Build, progress: Progress) -> tuple[Apt, Distribution]:
    """Where packages come from: the host's distribution, or the one that the lists of `sources` are of."""
    cache = request.cache.absolute()
    if request.sources is None:
        host = distribution.detect()
        suite = request.suite or host.codename
        return Apt(cache / suite, host.codename, suite), host
    apt = Apt.of(request.sources, cache)
    if not apt.has_lists():
        progress.step("package lists")
        apt.refresh()
    return apt, distribution.known(apt.origin(), apt.suite)


def _make(
    request: Build,
    apt: Apt,
    plan: Plan | None,
    made_of: Distribution,
    scratch: Path,
    output: Path,
    progress: Progress,
) -> Manifest:
    # Package lists that are old would send us to files that are gone: fetch them whenever we fetch at all.
    if plan is None or apt.missing(plan.packages):
        progress.step("package lists")
        apt.refresh()
        plan = _new_plan(apt, made_of.kernel).fitting(request.agent)
    progress.step("packages")
    apt.fetch(plan.packages, progress.advance)
    progress.step("kernel and initramfs")
    new = scratch / "new"
    new.mkdir()
    boot = _unpack(apt, plan.boot, lambda path: Kernel.keep(path) or path == initramfs.BUSYBOX)
    machine = Kernel(boot)
    (new / KERNEL).write_bytes(machine.image)
    (new / INITRAMFS).write_bytes(initramfs.make(machine, boot))
    checking = _unpack(apt, plan.verity, initramfs.keep_verity)
    rootfs.drop_unused_libraries(checking)
    (new / VERITY_INITRAMFS).write_bytes(initramfs.make(machine, boot, verity=checking))
    progress.step("root filesystem")
    identity = _input(request, plan)
    guest = _unpack(apt, plan.root, rootfs.keep)
    tree = rootfs.assemble(guest, request.agent)
    modules.add(tree, machine, boot.read(modules.BUSYBOX))
    rootfs.make(tree, request.agent, scratch / "root", new / IMAGE, identity)
    hashes = verity.append(new / IMAGE, hashlib.sha256(identity.encode()).digest())
    progress.step("manifest")
    artifacts = {name: Artifact.of(new / name) for name in ARTIFACTS}
    made_from = _made_from(sbom.Archive(made_of.name, apt.suite), plan, request.agent)
    (new / sbom.SBOM).write_text(sbom.write(identity, artifacts, made_from), encoding="utf-8")
    artifacts[sbom.SBOM] = Artifact.of(new / sbom.SBOM)
    newest = _day(max(guest.newest, boot.newest, checking.newest))
    made = Manifest(
        *(identity, apt.suite, machine.release, newest, request.agent.described, str(hashes)),
        plan.packages,
        artifacts,
    )
    made.write(new)
    publish(new, output)
    return made


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _made_from(archive: sbom.Archive, plan: Plan, agent: GuestAgent) -> dict[str, list[Component]]:
    kernel = [package for package in plan.boot if package.name.startswith("linux-image-")]
    return {
        KERNEL: archive.components(kernel),
        INITRAMFS: archive.components(plan.boot),
        VERITY_INITRAMFS: archive.components(sorted({*plan.boot, *plan.verity})),
        IMAGE: [*archive.components(plan.root), *agent.components()],
    }


def _unpack(apt: Apt, packages: list[Package], keep: Callable[[str], bool]) -> Tree:
    tree = Tree()
    for package in packages:
        tree.add_package(apt.archives / package.file, keep)
    return tree


def _new_plan(apt: Apt, kernel: str) -> Plan:
    """Resolve the packages, and remember the answer for as long as the sources and lists are the same."""
    boot = apt.resolve([kernel, *distribution.BOOT])
    # A kernel package also depends on what installs it on a running system; a guest is not one.
    wanted = (*distribution.BOOT, "linux-image-", "linux-modules-")
    plan = Plan(
        apt.resolve(distribution.GUEST),
        apt.resolve(distribution.python_packages(apt.suite)),
        [package for package in boot if package.name.startswith(wanted)],
        apt.resolve(distribution.VERITY),
    )
    document = {"question": _question(apt, kernel), "packages": asdict(plan)}
    (apt.directory / PLAN).write_text(json.dumps(document), encoding="utf-8")
    return plan


def _question(apt: Apt, kernel: str) -> list[str]:
    guest = (*distribution.GUEST, *distribution.python_packages(apt.suite))
    return [apt.fingerprint(), kernel, *distribution.BOOT, *distribution.VERITY, *guest]


def _known_plan(apt: Apt, kernel: str) -> Plan | None:
    try:
        document = json.loads((apt.directory / PLAN).read_text(encoding="utf-8"))
        if document["question"] != _question(apt, kernel):
            return None
        groups = {
            key: [Package(**package) for package in group] for key, group in document["packages"].items()
        }
        return Plan(**groups)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _up_to_date(request: Build, plan: Plan) -> Manifest | None:
    current = manifest.read(request.output)
    if current is None or current.input != _input(request, plan) or not current.intact(request.output):
        return None
    return current


def _input(request: Build, plan: Plan) -> str:
    """Return the hash of everything that decides the image's bytes."""
    digest = hashlib.sha256(json.dumps([asdict(package) for package in plan.packages]).encode())
    ours = Path(__file__).parent
    builder = [(path.name, path) for path in sorted(ours.iterdir()) if path.suffix in (".py", ".sh")]
    tool = ("mkfs.erofs", Path(command.find("mkfs.erofs")))
    inputs = ((name, path.read_bytes()) for name, path in [tool, *builder])
    for name, content in chain(inputs, request.agent.inputs()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


@contextmanager
def _explained(request: Build) -> Iterator[None]:
    """Turn what the operating system refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or request.output
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                free = shutil.disk_usage(_existing(Path(where))).free // 2**20
                raise OutputError(
                    f"no space left for {where}: {free} MB are free, a build takes about 500"
                ) from error
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise OutputError(
                    f"cannot write {where}: {error.strerror}: run as root, or choose --output and --cache"
                ) from error
            case _:
                raise OutputError(f"cannot build the image: {where}: {error.strerror}") from error


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)
