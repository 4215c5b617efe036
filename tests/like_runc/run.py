"""Run suites that others wrote in a container, here and with runc, and compare them test by test.

Each suite runs on the container's root file system and on a volume, one container for each, with the same
containerd, image and command. What comes to something else than with runc must be explained in
docs/like-runc.md: otherwise the exit status is 1. Suites whose sources are in no package run where a variable
names a directory with them:

  KATA_TEST_PJDFSTEST  pjdfstest's sources, built in place
  KATA_TEST_LTP        where the Linux Test Project was installed (its --prefix)
  KATA_TEST_RUNTIMETEST  a directory with runtimetest, of the OCI's runtime-tools
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent.parent / "support"
sys.path[:0] = [str(SUPPORT), str(SUPPORT.parent.parent / "examples/quickstart")]

import containerd_versions  # noqa: E402
import like_runc_image  # noqa: E402
import like_runc_report  # noqa: E402
from kata_runtime.image import builder  # noqa: E402
from kata_runtime.image.errors import ImageError  # noqa: E402
from like_runc_report import Comparison  # noqa: E402
from like_runc_suites import PRELUDE, SUITES, Suite  # noqa: E402
from node import RUNTIME, Node  # noqa: E402

RUNC = "io.containerd.runc.v2"
PAGE = Path(__file__).resolve().parents[2] / "docs/like-runc.md"
PLACES = {"root": "/var/tmp", "volume": "/volume"}
FAILED, UNFIT = 1, 2
POLL = 0.2


def main() -> int:
    """Parse the command line, run the suites, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=builder.DEFAULT_OUTPUT, help="of the guest")
    parser.add_argument("--suite", action="append", choices=sorted(SUITES), help="only this, and others so")
    parser.add_argument("--place", action="append", choices=sorted(PLACES), help="only there")
    parser.add_argument("--only", default="*", help="tests whose name is of this pattern of bash's")
    parser.add_argument("--output", type=Path, help="a directory to keep what the suites print in")
    arguments = parser.parse_args()
    suites = [SUITES[name] for name in arguments.suite or sorted(SUITES)]
    for suite in suites:
        if missing := suite.missing():
            print(f"{suite.name} is left out: {', '.join(missing)} names no directory", file=sys.stderr)
    suites = [suite for suite in suites if not suite.missing()]
    try:
        found = play(arguments, suites)
    except (ImageError, containerd_versions.NotAvailableError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return UNFIT
    if not any(one.alike or one.differences for one in found):
        print("run.py: no test was run: no suite is there, or has one of that name", file=sys.stderr)
        return UNFIT
    text, explained = like_runc_report.describe(found, like_runc_report.read_list(PAGE.read_text()))
    print(text)
    return 0 if explained else FAILED


def play(arguments: argparse.Namespace, suites: list[Suite]) -> list[Comparison]:
    """Run suites at each place, with both runtimes. Raises ImageError, NotAvailableError."""
    if os.geteuid() != 0:
        raise ImageError("suites run in containers: run it as root")
    node = Node(containerd_versions.find(containerd_versions.SYSTEM), arguments.image)
    try:
        node.start()
        with tempfile.TemporaryDirectory(dir=node.root) as directory:
            archive = Path(directory) / "image.tar"
            like_runc_image.write(archive, suites)
            node.ctr("image", "import", archive)
        found = []
        for suite in suites:
            for place in (place for place in suite.places if place in (arguments.place or PLACES)):
                texts = [_run(node, suite, place, runtime, arguments) for runtime in (RUNC, RUNTIME)]
                found.append(like_runc_report.compare(suite.name, place, *map(suite.read, texts)))
                print(f"{suite.name} on the {place}: {found[-1].alike} alike", file=sys.stderr, flush=True)
        return found
    finally:
        node.close()


def _run(node: Node, suite: Suite, place: str, runtime: str, arguments: argparse.Namespace) -> str:
    """What a suite prints in a container of its own."""
    container = node.new_id()
    volume = node.root / f"volume-{container}"
    volume.mkdir(mode=0o755)
    work = f"{PLACES[place]}/work"
    script = f"mkdir -p {work} && cd {work} || exit\n{PRELUDE}{suite.script}"
    mount = f"type=bind,src={volume},dst=/volume,options=rbind:rw"
    command = node.command(
        *("run", "--rm", "--runtime", runtime, "--mount", mount),
        *("--env", f"ONLY={arguments.only}"),
        *(like_runc_image.NAME, container, "bash", "-c", script),
    )
    name = f"{suite.name}-{place}-{'runc' if runtime == RUNC else 'here'}"
    directory = arguments.output or volume.parent
    directory.mkdir(parents=True, exist_ok=True)
    # Into files as it comes: of a suite that takes hours something is seen, whatever ends it.
    paths = [directory / f"{name}.{kind}" for kind in ("txt", "errors")]
    with (
        paths[0].open("wb") as output,
        paths[1].open("wb") as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors) as process,
    ):
        if suite.given_spec:
            _give_spec(node, container, volume, process)
    return paths[0].read_text(errors="replace")


def _give_spec(node: Node, container: str, volume: Path, process: subprocess.Popen[bytes]) -> None:
    """Put the container's specification, as containerd has it, into its volume."""
    while process.poll() is None:
        found = node.ctr("container", "info", container, check=False)
        if found.returncode == 0:
            spec = json.loads(found.stdout)["Spec"]
            # It would read each, and this one gives whoever reads it an error, on any kernel.
            read_only = [path for path in spec["linux"]["readonlyPaths"] if path != "/proc/sysrq-trigger"]
            spec["linux"]["readonlyPaths"] = read_only
            new = volume / "config.json.new"
            new.write_text(json.dumps(spec))
            new.rename(volume / "config.json")
            return
        time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())
