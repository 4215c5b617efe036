"""Programs that the build runs, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from kata_runtime.image.errors import OutputError, ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN_PACKAGES = {"apt-get": "apt", "dpkg-deb": "dpkg", "mkfs.erofs": "erofs-utils", "zstd": "zstd"}
NO_SPACE = os.strerror(errno.ENOSPC)


def find(tool: str) -> str:
    """Return the path of a program. Raises ToolError, naming the package that has it."""
    path = shutil.which(tool, path=SEARCH_PATH)
    if path is None:
        package = DEBIAN_PACKAGES.get(tool, tool)
        raise ToolError(f"{tool} is not installed: apt-get install {package}")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of every program: ours without locale and Python's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    return kept | {"LC_ALL": "C", "PATH": SEARCH_PATH} | dict(extra or {})


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    extra: Mapping[str, str] | None = None,
    errors: bool = False,
) -> bytes:
    """Run a program to its end and return what it printed. errors: to its standard error too.

    Raises:
        ToolError: it is missing or failed; the message ends with its last lines.
        OutputError: it failed because a file system is full.
    """
    command = [find(argv[0]), *argv[1:]]
    finished = subprocess.run(command, input=stdin, capture_output=True, env=environment(extra), check=False)
    if finished.returncode:
        raise failure(argv[0], finished.returncode, finished.stderr or finished.stdout)
    return finished.stdout + (finished.stderr if errors else b"")


@contextmanager
def stream(argv: Sequence[str]) -> Iterator[IO[bytes]]:
    """Run a program and read its output while it runs; it must have succeeded at the end of the block.

    Raises as `run` does. A block that raises kills the program.
    """
    with subprocess.Popen(
        [find(argv[0]), *argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
            process.stdout.read()
        except BaseException:
            process.kill()
            raise
        errors = process.stderr.read()
    if process.returncode:
        raise failure(argv[0], process.returncode, errors)


def failure(tool: str, status: int, output: bytes) -> ToolError | OutputError:
    """Return the error for a program that failed: a full file system, or its own last three lines."""
    text = output.decode("utf-8", "replace")
    if NO_SPACE in text:
        return OutputError(f"no space left while {tool} was writing: free about 500 MB and try again")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-3:]
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return ToolError(f"{tool} failed with {how}: {'; '.join(lines) or 'it printed nothing'}")
