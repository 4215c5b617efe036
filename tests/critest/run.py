"""Run critest, the CRI's own validation suite, and hold what does not pass to the list in docs/critest.md.

KATA_TEST_CRITEST names its program: `go test -c ./cmd/critest` in the sources of cri-tools makes one.
KATA_TEST_CRITEST_IMAGES names a directory with an archive for each image that it asks for, as `ctr image
import` takes them: without a registry it can pull none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent.parent / "support"
QUICKSTART = SUPPORT.parent.parent / "examples/quickstart"
sys.path[:0] = [str(SUPPORT), str(QUICKSTART)]

import containerd_versions  # noqa: E402
import cri_settings  # noqa: E402
import critest_report  # noqa: E402
from kata_runtime.image import builder  # noqa: E402
from namespaced_node import NamespacedNode  # noqa: E402

PROGRAM, IMAGES = "KATA_TEST_CRITEST", "KATA_TEST_CRITEST_IMAGES"
PLUGINS = Path("/usr/lib/cni")
LIST = Path(__file__).resolve().parent.parent.parent / "docs/critest.md"
REGISTRY = "NRI|Image Manager|Image Consistency|Identifier Consistency|Image Volume"
"""Specs that pull images, or need a plugin of the host's: they say nothing of a runtime."""
PAUSE = "registry.k8s.io/pause:3.10"
FAILED, UNFIT = 1, 2

NETWORK = {
    "cniVersion": "1.0.0",
    "name": "critest",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.239.7.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class UnfitError(Exception):
    """critest cannot be run here; the message says what is missing and what to do."""


def main() -> int:
    """Parse the command line, run critest, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=builder.DEFAULT_OUTPUT, help="of the guest")
    parser.add_argument(
        "--containerd",
        choices=(containerd_versions.SYSTEM, containerd_versions.SECOND),
        default=containerd_versions.SECOND,
        help="which one (%(default)s)",
    )
    parser.add_argument("--runtime", choices=("kata", "runc"), default="kata", help="(%(default)s)")
    parser.add_argument("--focus", default="", help="a regular expression: only specs that match")
    parser.add_argument("--skip", default="", help="a regular expression: no specs that match")
    parser.add_argument("--output", type=Path, help="a directory to keep the reports and the logs in")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="run what has not passed by the reports in --output, and tell of all",
    )
    arguments = parser.parse_args()
    if arguments.resume and arguments.output is None:
        parser.error("--resume needs the directory of the earlier run: --output")
    try:
        program, images = _inputs()
        reports, version = _run(arguments, program, images)
    except (UnfitError, containerd_versions.NotAvailableError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return UNFIT
    known = critest_report.read_list(LIST.read_text(), version) if arguments.runtime == "kata" else {}
    specs = critest_report.merge(map(critest_report.read, reports))
    if not specs:
        print(f"run.py: no spec's name matches {arguments.focus!r}", file=sys.stderr)
        return UNFIT
    text, as_listed = critest_report.describe(specs, known)
    print(f"critest with {arguments.runtime} on containerd {version}\n\n{text}")
    if reason := critest_report.broken_off(reports[-1]):
        print(f"\nit has not come to its end ({reason}): --resume with the same --output runs the rest")
    return 0 if as_listed and not reason else FAILED


def _inputs() -> tuple[str, list[Path]]:
    """The program, and the archives of its images. Raises UnfitError."""
    if os.geteuid() != 0:
        raise UnfitError("critest makes pods: run it as root")
    program, directory = os.environ.get(PROGRAM, ""), os.environ.get(IMAGES, "")
    if not shutil.which(program):
        raise UnfitError(
            f"no critest: name its program in {PROGRAM} (`go test -c ./cmd/critest` in cri-tools' sources)"
        )
    archives = sorted(Path(directory).glob("*.tar")) if directory else []
    if not archives:
        raise UnfitError(f"no images for critest: name a directory with their archives in {IMAGES}")
    for plugin in (PLUGINS / "bridge", PLUGINS / "portmap"):
        if not shutil.which(plugin):
            raise UnfitError(f"{plugin} is missing: run make packages")
    return program, archives


def _run(arguments: argparse.Namespace, program: str, images: list[Path]) -> tuple[list[str], str]:
    """Run the suite; returns the earlier reports and its own, and containerd's version."""
    with _directory(arguments.output) as directory:
        earlier = _earlier(directory, resume=arguments.resume)
        (directory / "net.d").mkdir(exist_ok=True)
        network = {**NETWORK}
        (directory / "net.d/critest.conflist").write_text(json.dumps(network))
        runtimes = [cri_settings.runtime("kata"), cri_settings.runtime("runc", "io.containerd.runc.v2")]
        settings = cri_settings.plugin(
            runtimes,
            default=arguments.runtime,
            pause=PAUSE,
            plugins=PLUGINS,
            networks=directory / "net.d",
        )
        bed = NamespacedNode(directory, arguments.image, cri=settings, version=arguments.containerd)
        try:
            for archive in images:
                bed.node.ctr("image", "import", archive)
            report = directory / f"report-{len(earlier) + 1:03}.json"
            endpoint = f"unix://{bed.node.containerd.address}"
            argv = _command(arguments, program, endpoint, report, _done(earlier))
            log = report.with_suffix(".log")
            _run_to_its_end([*bed.inside, *argv], log)
            bed.node.until(lambda: _all_made(bed.node.log()), "the end of a pod that was being made")
            shutil.copy(bed.node.containerd.log_path, report.with_suffix(".containerd.log"))
            if not report.exists():
                raise UnfitError(f"critest wrote no report: {_end_of(log)}")
            version = ".".join(map(str, bed.node.programs.version))
            return [*earlier, report.read_text()], version
        finally:
            bed.close()


def _earlier(directory: Path, *, resume: bool) -> list[str]:
    """The reports of earlier runs. Raises UnfitError: there are some, and nobody asked to go on with them."""
    found = sorted(directory.glob("report-*.json"))
    if found and not resume:
        raise UnfitError(f"{directory} has reports: go on with --resume, or name another directory")
    return [path.read_text() for path in found]


def _done(reports: list[str]) -> str:
    return critest_report.left_out(critest_report.merge(map(critest_report.read, reports)))


def _run_to_its_end(argv: list[str], log: Path) -> None:
    """Run critest. An interrupt, or SIGTERM, is passed on once: it cleans up and writes its report."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with (
        log.open("wb") as output,
        subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()


def _all_made(log: str) -> bool:
    """Whether containerd has answered for each pod: killed before, it leaves a network namespace behind."""
    lines = [line for line in log.splitlines() if 'msg="RunPodSandbox for ' in line]
    answers = sum(" returns sandbox id " in line or " failed, error" in line for line in lines)
    return len(lines) == 2 * answers


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def _command(
    arguments: argparse.Namespace, program: str, endpoint: str, report: Path, done: str
) -> list[str]:
    skipped = "|".join(filter(None, (REGISTRY, arguments.skip, done)))
    return [
        program,
        f"--runtime-endpoint={endpoint}",
        f"--image-endpoint={endpoint}",
        "--runtime-service-timeout=300s",
        f"--ginkgo.json-report={report}",
        f"--ginkgo.skip={skipped}",
        *([f"--ginkgo.focus={arguments.focus}"] if arguments.focus else []),
        "--ginkgo.no-color",
        "--ginkgo.v",
        "--ginkgo.timeout=24h",
    ]


def _end_of(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])


if __name__ == "__main__":
    sys.exit(main())
