"""The guest image, built from real packages: the same bytes twice, complete, small, and it boots."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import ubuntu_sources
from kata_runtime.image import builder, distribution, elf, manifest, modules, sbom
from kata_runtime.image.agent import AGENT_ROOT, Agent
from kata_runtime.image.agent_program import AgentProgram
from kata_runtime.image.apt import Apt
from kata_runtime.image.errors import ContentError, PackageError
from patience import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CACHE = builder.DEFAULT_CACHE
STAND_IN = """
import ctypes, os

def loaded():
    return {line.split()[0] for line in open("/proc/modules")}

def main():
    import asyncio, json, logging, socket, subprocess, threading
    from google.protobuf import descriptor_pb2
    crun = subprocess.run(["/usr/bin/crun", "--version"], capture_output=True, text=True).stdout.split()
    at_boot = loaded()
    mounted = "virtiofs" in at_boot
    for family, protocol in ((socket.AF_NETLINK, 12), (socket.AF_KEY, 2)):
        socket.socket(family, socket.SOCK_RAW, protocol).close()
    os.mknod("/dev/tun", 0o20600, os.makedev(10, 200))
    os.close(os.open("/dev/tun", os.O_RDWR))
    with open("/dev/console", "w") as console:
        print("UP", crun[:2], mounted, os.access("/", os.W_OK), file=console, flush=True)
        print("AT BOOT", *sorted(at_boot), "END", file=console, flush=True)
        print("ON DEMAND", sorted(loaded() & {"nfnetlink", "af_key", "tun"}), file=console, flush=True)
    ctypes.CDLL(None).reboot(0x4321FEDC)
"""

OWN = """
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
    FILE *console = fopen("/dev/console", "w");
    fprintf(console, "OWN %d %d\\n", getpid(), access("/usr/bin/python3", F_OK));
    fclose(console);
    return reboot(RB_POWER_OFF);
}
"""


MODULES = "usr/lib/modules/*/*.ko"
"""In the root file system: those that are loaded when something asks for them."""


@dataclass
class Steps:
    """Remembers the steps of a build."""

    titles: list[str] = field(default_factory=list)

    def step(self, title: str) -> None:
        self.titles.append(title)

    def advance(self, fraction: float) -> None:
        pass


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """An agent that reports what it found, and powers off."""
    package = tmp_path_factory.mktemp("agent") / "kata_agent"
    (package / "guest").mkdir(parents=True)
    for name in ("__init__.py", "guest/__init__.py"):
        (package / name).touch()
    (package / "guest/main.py").write_text(STAND_IN)
    return Agent(package, Agent.installed().protobuf)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, stand_in: Agent) -> Path:
    output = tmp_path_factory.mktemp("image") / "image"
    builder.build(builder.Build(output, CACHE, agent=stand_in), Steps())
    return output


@pytest.fixture(scope="module")
def root(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root filesystem, mounted."""
    place = tmp_path_factory.mktemp("root")
    subprocess.run(["mount", "-o", "loop,ro", "-t", "erofs", image / builder.IMAGE, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_the_same_packages_give_the_same_bytes(image: Path, stand_in: Agent, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(stand_in.package, tmp_path / "elsewhere/kata_agent")
    moved = Agent(elsewhere, stand_in.protobuf)
    memory = Path("/dev/shm") / f"kata-image-test-{os.getpid()}"
    try:
        outcome = builder.build(builder.Build(memory / "a/longer/path", CACHE, agent=moved), Steps())
        assert outcome.built
        assert hashes(memory / "a/longer/path") == hashes(image)
        assert set(hashes(image)) == {
            *("vmlinuz", "kata-initrd.img", "kata-initrd-verity.img", "kata-image.erofs"),
            *("manifest.json", "sbom.cdx.json"),
        }
    finally:
        shutil.rmtree(memory, ignore_errors=True)


NEXT = {"bookworm": "trixie", "jammy": "noble"}
"""The release after a host's, for guests with its kernel."""


@pytest.mark.timeout(1800)
def test_another_release_is_built_and_boots(stand_in: Agent, tmp_path: Path) -> None:
    host = distribution.detect().codename
    if host not in NEXT:
        pytest.skip(f"no release is known here that follows {host}")
    made = builder.build(builder.Build(tmp_path / "image", CACHE, NEXT[host], agent=stand_in), Steps())
    assert made.manifest.suite == NEXT[host]
    assert date.fromisoformat(made.manifest.newest) > date(2024, 1, 1)
    assert "ON DEMAND ['af_key', 'nfnetlink', 'tun']" in boot(tmp_path / "image", "root=/dev/vda")


@pytest.mark.timeout(1800)
def test_another_distribution_is_built_and_boots(stand_in: Agent, tmp_path: Path) -> None:
    host = distribution.detect()
    if host.name != "debian":
        pytest.skip("Ubuntu's keys are taken from Debian's packages, and this host is Ubuntu itself")
    try:
        sources = ubuntu_sources.write(tmp_path, host.codename, CACHE)
        Apt.of(sources, CACHE).refresh()
    except PackageError as error:
        pytest.skip(f"Ubuntu's archive cannot be reached: {error}")
    request = builder.Build(tmp_path / "image", CACHE, agent=stand_in, sources=sources)
    made = builder.build(request, Steps()).manifest
    assert made.suite == ubuntu_sources.SUITE
    bill = (tmp_path / "image" / sbom.SBOM).read_text()
    assert "pkg:deb/ubuntu/crun@" in bill
    assert "pkg:deb/debian/" not in bill
    # Ubuntu's kernel has tun without a module: the stand-in has opened it all the same.
    assert "ON DEMAND ['af_key', 'nfnetlink']" in boot(tmp_path / "image", "root=/dev/vda")
    assert not builder.build(request, Steps()).built


def test_nothing_is_done_when_nothing_changed(image: Path, stand_in: Agent) -> None:
    steps = Steps()
    before = image.stat().st_ino
    assert not builder.build(builder.Build(image, CACHE, agent=stand_in), steps).built
    assert (steps.titles, image.stat().st_ino) == ([], before)


def test_a_changed_agent_or_a_damaged_image_is_built_again(
    image: Path, stand_in: Agent, tmp_path: Path
) -> None:
    output = shutil.copytree(image, tmp_path / "image")
    with (output / builder.INITRAMFS).open("ab") as damaged:
        damaged.write(b"x")
    assert builder.build(builder.Build(output, CACHE, agent=stand_in), Steps()).built
    assert hashes(output) == hashes(image)
    changed = Agent(shutil.copytree(stand_in.package, tmp_path / "kata_agent"), stand_in.protobuf)
    (changed.package / "guest/more.py").touch()
    assert builder.build(builder.Build(output, CACHE, agent=changed), Steps()).built
    assert hashes(output)[builder.IMAGE] != hashes(image)[builder.IMAGE]


def test_a_killed_build_leaves_the_output_as_it_was(image: Path, tmp_path: Path) -> None:
    output = shutil.copytree(image, tmp_path / "image")
    before = hashes(output)
    code = (
        "import sys; from pathlib import Path; from kata_runtime.image import builder\n"
        "class Stop:\n"
        "    def step(self, title):\n"
        "        if title == 'manifest': print('there', flush=True); sys.stdin.read()\n"
        "    def advance(self, fraction): pass\n"
        "builder.build(builder.Build(Path(sys.argv[1]), builder.DEFAULT_CACHE), Stop())"
    )
    arguments = [sys.executable, "-c", code, str(output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    assert hashes(output) == before
    assert (tmp_path / ".image.build").exists()
    assert builder.build(builder.Build(output, CACHE), Steps()).built
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_an_agent_that_cannot_be_imported_is_found_out(image: Path, stand_in: Agent, tmp_path: Path) -> None:
    output = shutil.copytree(image, tmp_path / "image")
    broken = Agent(shutil.copytree(stand_in.package, tmp_path / "kata_agent"), stand_in.protobuf)
    (broken.package / "guest/main.py").write_text("import no_such_module\n")
    with pytest.raises(ContentError, match=r"cannot import the guest agent: .*no_such_module"):
        builder.build(builder.Build(output, CACHE, agent=broken), Steps())
    assert hashes(output) == hashes(image)
    assert not (tmp_path / ".image.build").exists()


def test_the_manifest_names_every_package_and_file(image: Path) -> None:
    read = manifest.read(image)
    assert read is not None
    assert read.intact(image)
    names = {package.name for package in read.packages}
    assert {"crun", "busybox-static", "libc6"} <= names
    assert any(name.startswith("linux-image-") and read.kernel in name for name in names)


def test_the_bill_of_materials_names_every_package_and_file(image: Path) -> None:
    read = manifest.read(image)
    assert read is not None
    text = (image / sbom.SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["version"] == read.input
    listed = {(one["name"], one["hashes"][0]["content"]) for one in bill["components"] if "hashes" in one}
    expected = {(package.name, package.sha256) for package in read.packages}
    expected |= {(name, artifact.sha256) for name, artifact in read.artifacts.items() if name != sbom.SBOM}
    assert listed == expected
    assert {one["name"] for one in bill["components"] if "hashes" not in one} == {"kata-agent", "protobuf"}


def test_every_program_and_library_finds_its_libraries(root: Path) -> None:
    (libraries,) = (root / "usr/lib").glob("*-linux-gnu")
    checked = 0
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or not elf.is_elf(path.read_bytes()[:64]):
            continue
        checked += 1
        for name in elf.needed(path.read_bytes()):
            assert (libraries / name).exists(), f"{path} needs {name}"
    assert checked > 20


def test_nothing_in_the_image_tells_who_made_it_or_when(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 0), path
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH) or path.is_symlink(), path
    names = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert not [
        name for name in names if name.startswith(("var/lib/dpkg", "var/cache", "usr/share", "etc/apt"))
    ]


def test_the_image_is_small_and_has_what_a_read_only_root_needs(image: Path, root: Path) -> None:
    assert (image / builder.IMAGE).stat().st_size < 30_000_000
    assert (image / builder.INITRAMFS).stat().st_size < 6_000_000
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "root"):
        assert (root / name).is_dir()
    assert (root / "etc/resolv.conf").readlink() == Path("/run/resolv.conf")
    assert not list(root.glob("usr/lib/python3.*/**/*.py"))
    assert list(root.glob(f"{AGENT_ROOT}/kata_agent/**/__pycache__/main.*.pyc"))


# A busy host's emulation loses interrupts by which the kernel tells whether it has a timer, and it panics.
CONSOLE = "console=ttyS0 quiet panic=1 reboot=k no_timer_check tsc=unstable rootfstype=erofs"


def boot(image: Path, *parameters: str) -> str:
    """Boot the image under emulation and return what it wrote to its console."""
    qemu = "qemu-system-x86_64 -machine q35,accel=tcg -cpu max -m 512 -nographic -nodefaults -no-reboot"
    finished = subprocess.run(
        [
            *qemu.split(),
            *("-serial", "stdio", "-bios", "qboot.rom"),
            *("-kernel", image / builder.KERNEL, "-initrd", image / builder.INITRAMFS),
            *("-drive", f"file={image / builder.IMAGE},if=none,id=root,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-append", " ".join((CONSOLE, *parameters))),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=max(120.0, PATIENCE),
        check=True,
    )
    return finished.stdout.decode("utf-8", "replace")


def test_it_boots_into_the_agent_and_loads_modules_on_demand(image: Path, root: Path) -> None:
    console = boot(image, "root=/dev/vda")
    assert "UP ['crun', 'version'] True False" in console
    assert "ON DEMAND ['af_key', 'nfnetlink', 'tun']" in console
    at_boot = set(console.partition("AT BOOT ")[2].partition(" END")[0].split())
    assert {"virtiofs", "erofs"} <= at_boot
    first = (image / builder.INITRAMFS).read_bytes()
    on_demand = {path.stem for path in root.glob(MODULES) if f"modules/{path.name}\0".encode() not in first}
    assert not at_boot & on_demand


def test_modules_on_demand_cost_the_image_less_than_10_mib(root: Path) -> None:
    files = [*root.glob(MODULES), root / modules.BUSYBOX]
    assert len(files) > 100
    assert sum(512 * path.stat().st_blocks for path in files) < 10 << 20


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
@pytest.mark.parametrize("linked", ["static", "dynamic"])
def test_a_program_of_ones_own_is_the_guests_init(linked: str, tmp_path: Path) -> None:
    how = ["-static"] if linked == "static" else []
    command = ["gcc", *how, "-x", "c", "-o", str(tmp_path / "own"), "-"]
    subprocess.run(command, input=OWN, text=True, check=True)
    agent = AgentProgram.read(tmp_path / "own")
    assert (agent.loader is None) == (linked == "static")
    made = builder.build(builder.Build(tmp_path / "image", CACHE, agent=agent), Steps()).manifest
    assert made.agent == agent.described
    assert not any("python" in package.name for package in made.packages)
    bill = json.loads((tmp_path / "image" / sbom.SBOM).read_text())
    assert not {"protobuf", "python3-minimal"} & {one["name"] for one in bill["components"]}
    assert "OWN 1 -1" in boot(tmp_path / "image", "root=/dev/vda")


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ((), "the kernel's command line has no root="),
        (("root=LABEL=x",), "root=LABEL=x is not the path of a device"),
        (("root=/dev/vda", "init=/nope"), "/nope in /dev/vda is not executable"),
        (("root=/dev/vda", "rootfstype=ext4"), "cannot mount /dev/vda as ext4: "),
    ],
)
def test_a_failure_on_the_way_is_one_line_and_the_end(
    image: Path, parameters: tuple[str, ...], line: str
) -> None:
    console = boot(image, *parameters)
    assert f"kata-initramfs: fatal: {line}" in console
    assert "Kernel panic" not in console
    assert "UP" not in console
