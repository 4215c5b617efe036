"""Run pods of a kubelet, a topic of upstream's tests at a time, and print a table of what they are.

KATA_TEST_KUBELET names its program: `go build ./cmd/kubelet` in the sources of Kubernetes makes one. It has
no API server: its pods are files. Exit status 1: a topic is not as its manifest asks, or something is left.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent.parent / "support"
QUICKSTART = SUPPORT.parent.parent / "examples/quickstart"
sys.path[:0] = [str(SUPPORT), str(QUICKSTART)]

import containerd_versions  # noqa: E402
from cri_node import PLUGINS  # noqa: E402
from kata_runtime.image import builder  # noqa: E402
from kubelet import Kubelet, UnmetError  # noqa: E402
from kubelet_stream import StreamError  # noqa: E402
from kubelet_topics import TOPICS, Topic  # noqa: E402

PROGRAM = "KATA_TEST_KUBELET"
FAILED, UNFIT = 1, 2


class UnfitError(Exception):
    """A kubelet cannot be run here; the message says what is missing and what to do."""


def main() -> int:
    """Parse the command line, run the topics, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=builder.DEFAULT_OUTPUT, help="of the guest")
    parser.add_argument("--runtime", choices=("kata", "runc"), default="kata", help="(%(default)s)")
    parser.add_argument("--focus", default="", help="a regular expression: only topics that match")
    parser.add_argument("--output", type=Path, help="a directory to keep the logs in")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # after it has put everything back
    try:
        program = _program()
        chosen = [
            one
            for one in TOPICS
            if re.search(arguments.focus, one.name) and (arguments.runtime == "kata" or not one.machine)
        ]
        if not chosen:
            raise UnfitError(f"no topic's name matches {arguments.focus!r}")
        return _run(arguments, program, chosen)
    except (UnfitError, containerd_versions.NotAvailableError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return UNFIT


def _program() -> str:
    """The kubelet's path. Raises UnfitError."""
    if os.geteuid() != 0:
        raise UnfitError("a kubelet makes pods: run it as root")
    found = shutil.which(os.environ.get(PROGRAM, ""))
    if found is None:
        raise UnfitError(
            f"no kubelet: name its program in {PROGRAM} (`go build ./cmd/kubelet` in Kubernetes' sources)"
        )
    for plugin in (PLUGINS / "bridge", PLUGINS / "portmap"):
        if not shutil.which(plugin):
            raise UnfitError(f"{plugin} is missing: run make packages")
    return found


def _run(arguments: argparse.Namespace, program: str, topics: list[Topic]) -> int:
    """Run topics one after the other; returns the exit status."""
    with _directory(arguments.output) as directory:
        kubelet = Kubelet(directory, arguments.image, program, arguments.runtime)
        try:
            kubelet.start()
            version = ".".join(map(str, kubelet.node.programs.version))
            print(f"a kubelet with {arguments.runtime} on containerd {version}\n")
            print("| topic | upstream's files | what came of it |\n|---|---|---|", flush=True)
            passed = [_passes(kubelet, one) for one in topics]
            left = _left(kubelet)
            print(f"\n{sum(passed)} passed, {len(passed) - sum(passed)} failed; left: {left or 'nothing'}")
        finally:
            shutil.copy(kubelet.node.containerd.log_path, directory / "containerd.log")
            kubelet.close()
    return 0 if all(passed) and not left else FAILED


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        if wanted is None:
            yield Path(made)
            return
        wanted.mkdir(parents=True)
        yield wanted.absolute()


def _passes(kubelet: Kubelet, topic: Topic) -> bool:
    """Try a topic, and print its row."""
    begun = time.monotonic()
    try:
        topic.check(kubelet)
        found = ""
    except (UnmetError, StreamError) as error:
        found = str(error)
    except (AssertionError, LookupError, OSError, ValueError) as error:  # of the node, or of what it says
        found = f"{type(error).__name__}: {error}"
    found = " ".join(found.split()).replace("|", "/")
    told = found[:600] or f"passes, in {time.monotonic() - begun:.0f} s"
    print(f"| {topic.name} | {', '.join(topic.files) or 'none'} | {told} |", flush=True)
    return not found


def _left(kubelet: Kubelet) -> str:
    """What the pods have left when the kubelet has had time to clean up."""
    try:
        kubelet.until(lambda: not kubelet.left(), "nothing is left")
    except UnmetError:
        return "; ".join(kubelet.left())
    return ""


if __name__ == "__main__":
    sys.exit(main())
