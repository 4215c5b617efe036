"""kata-ctl image: the guest's kernel, initramfs and root filesystem."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kata_runtime.ctl.main import Subparsers
    from kata_runtime.image.builder import Outcome, Progress

MADE, FAILED, INTERRUPTED = 0, 1, 130


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its subcommands."""
    parser = subparsers.add_parser("image", help="build the guest's image")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="make the guest image from the distribution's packages",
        description="Make the guest's kernel, initramfs and root filesystem from the distribution's "
        "packages. Does nothing when neither the packages nor the agent have changed.",
        epilog="The same packages and the same agent give the same bytes.",
    )
    build.add_argument("--output", type=Path, metavar="DIR", help="default: /var/lib/kata-containers/image")
    build.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where downloads stay; default: /var/cache/kata-containers/image",
    )
    origin = build.add_mutually_exclusive_group()
    origin.add_argument(
        "--suite", help="release to take packages from, such as trixie; default: the host's release"
    )
    origin.add_argument(
        "--sources",
        type=Path,
        metavar="FILE",
        help="another distribution's sources of apt (*.sources or *.list), in place of the host's",
    )
    build.add_argument(
        "--agent",
        type=Path,
        metavar="FILE",
        help="a program to be the guest's agent in place of this project's, such as upstream's kata-agent",
    )
    build.add_argument(
        "--force",
        action="store_true",
        help="fetch the package lists and build, whether or not anything changed",
    )
    build.set_defaults(run=run_build)


def run_build(arguments: argparse.Namespace) -> int:
    """Bring the image up to date, and return the exit status."""
    os.umask(0o022)  # what decides an image's bytes is nobody else's, whatever the caller's mask
    from kata_runtime.image import builder
    from kata_runtime.image.agent import Agent
    from kata_runtime.image.agent_program import AgentProgram
    from kata_runtime.image.errors import ImageError

    own: Path | None = arguments.agent
    output: Path = arguments.output or builder.DEFAULT_OUTPUT
    cache: Path = arguments.cache or builder.DEFAULT_CACHE
    started = time.monotonic()
    try:
        with _progress() as progress:
            agent = AgentProgram.read(own) if own else Agent.installed()
            request = builder.Build(output, cache, arguments.suite, arguments.force, agent, arguments.sources)
            outcome = builder.build(request, progress)
    except ImageError as error:
        print(f"kata-ctl: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"kata-ctl: interrupted: {output} is as it was", file=sys.stderr)
        return INTERRUPTED
    _report(outcome, output, time.monotonic() - started)
    return MADE


def _report(outcome: Outcome, output: Path, seconds: float) -> None:
    done = f"built in {seconds:.0f} s" if outcome.built else "up to date"
    made = outcome.manifest
    packages = f"{len(made.packages)} packages of {made.suite}, the newest of {made.newest}"
    print(f"{output}: {done} (kernel {made.kernel}, {packages})")
    print(f"  agent: {made.agent}")
    for name, artifact in sorted(outcome.manifest.artifacts.items()):
        print(f"  {name:<22} {artifact.size / 1e6:6.1f} MB  sha256 {artifact.sha256[:16]}")
    print("a guest checks its image with the initrd kata-initrd-verity.img, and in [hypervisor.*]")
    print(f'  kernel_verity_params = "{outcome.manifest.verity}"')


def _progress() -> AbstractContextManager[Progress]:
    return _bars() if sys.stderr.isatty() else _lines()


class _Lines:
    """Progress for logs: one plain line as each step starts."""

    def step(self, title: str) -> None:
        print(f"image: {title}", file=sys.stderr, flush=True)

    def advance(self, fraction: float) -> None:
        """A log has no use for fractions."""


@contextmanager
def _lines() -> Iterator[_Lines]:
    yield _Lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    """Progress for people: one bar for each step."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    class Steps:
        def __init__(self, bars: Bars) -> None:
            self.bars = bars
            self.current: TaskID | None = None

        def step(self, title: str) -> None:
            self.finish()
            self.current = self.bars.add_task(title, total=None)

        def advance(self, fraction: float) -> None:
            if self.current is not None:
                self.bars.update(self.current, total=1.0, completed=fraction)

        def finish(self) -> None:
            if self.current is not None:
                self.bars.update(self.current, total=1.0, completed=1.0)
                self.bars.stop_task(self.current)

    columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), BarColumn())
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        steps = Steps(bars)
        yield steps
        steps.finish()
